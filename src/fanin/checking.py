"""`fanin.check`: trace → architecture → probe → symmetry → findings → report."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fanin import draw
from fanin.apply import lent
from fanin.architecture import Key, parameters_of, weighted_source
from fanin.branches import residual_branches
from fanin.clones import repeated_rows, shared
from fanin.construction import Record, recorded
from fanin.criteria import FAR
from fanin.errors import (
    ArgumentError,
    BatchError,
    FaninError,
    ForwardError,
    LossError,
    ModelError,
)
from fanin.findings import RULES, Evidence, Finding, depth_of, judge, stations, towers_of
from fanin.guard import finite_again, private, reseed, watching
from fanin.kinds import PASSIVE
from fanin.layers import LayerStats, layer_stats
from fanin.nested import arguments, inputs_in, map_batch, signals_in
from fanin.numbers import Audit, audit
from fanin.offsets import misplaced
from fanin.passes import Noise, Pass, Subject, run_pass
from fanin.planning import plan
from fanin.prediction import between_samples, predictions
from fanin.probe import Recorder, relative_spread, rms
from fanin.reading import check_batch
from fanin.report import Report
from fanin.starts import starts
from fanin.symmetry import RowSet, alike_rows, examine
from fanin.trace import reject_unwatchable
from fanin.version import __version__

__all__ = ["check", "check_given", "examined"]

Loss = Callable[[Any], Tensor]


def check(
    model: nn.Module | Callable[[], nn.Module],
    batch: Any,
    loss: Loss | None = None,
    *,
    seed: int = 0,
    dtype: torch.dtype | str | None = None,
    select: Iterable[str] | None = None,
    ignore: Iterable[str] | None = None,
    progress: Callable[[str], None] | None = None,
    record: Record | None = None,
) -> Report:
    """Say whether a model's initialization is sound, and prove it.

    Runs the model forward and backward once, in the mode it is in.  Only where units (or rows of a
    parameter) look like copies, or a gradient is exactly zero, are a few virtual training steps
    taken, on a float64 copy.  The model, its gradients, buffers, mode and hooks, the batch and all
    random states are left exactly as they were.

    Args:
        model: any module that runs; or a function without arguments that builds one, whose
            construction is then watched too (W503, and N402 with certainty).
        batch: a tensor, TensorDict or other object, as a graph is (one positional argument), a
            tuple (positional arguments) or a dict (keyword arguments).
        loss: from the model's output to a scalar, the mean loss.  Without it the output's own
            ``.loss`` is used, or else a random linear functional of the output; so it is where the
            loss is least already, as a square is of the zeros that a zero head gives.
        seed: of everything random in the check.
        dtype: the dtype that training will compute in, for the range that values must stay in
            (N404); the model's own by default.
        select: prefixes of the finding codes to report ("S", "P201"), or names of rules; all by
            default.
        ignore: the same of those to leave out.
        progress: told in a few words what is under way.
        record: what `fanin.recording` saw of the model's construction.

    Raises:
        ModelError: the model cannot be checked: no (trainable) parameters, meta, lazy or sparse
            parameters, or a forward that changes its own trainable parameters.
        ForwardError: the model, its hooks or its backward pass raised.
        BatchError: the batch is not finite (a mask of 0 and −inf may be) or on another device.
        LossError: the loss is not a finite scalar connected to a parameter.
        ArgumentError: an option has a value that is not allowed.

    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> check(model, torch.randn(32, 8)).ok
    True
    >>> _ = [nn.init.zeros_(p) for p in model.parameters()]
    >>> [f.code for f in check(model, torch.randn(32, 8)).findings]
    ['S101', 'S102']
    """
    if not isinstance(model, nn.Module):
        check_given(loss, progress, record)
        draw.integer("seed", seed, 0, 2**64)
        _codes(select, ignore)
        model, record = _built(model)
    return examined(
        model,
        batch,
        loss,
        seed=seed,
        dtype=dtype,
        select=select,
        ignore=ignore,
        progress=progress,
        record=record,
    )[0]


def examined(
    model: nn.Module,
    batch: Any,
    loss: Loss | None = None,
    *,
    seed: int = 0,
    dtype: torch.dtype | str | None = None,
    select: Iterable[str] | None = None,
    ignore: Iterable[str] | None = None,
    progress: Callable[[str], None] | None = None,
    record: Record | None = None,
) -> tuple[Report, Evidence]:
    """As `check`, with the evidence that the report was made from."""
    started = time.perf_counter()
    tell = progress or (lambda _: None)
    check_given(loss, progress, record)
    seed = draw.integer("seed", seed, 0, 2**64)
    chosen = _codes(select, ignore)
    _check_model(model)
    check_batch(model, batch)
    limit = _limit(model, dtype)
    samples = _samples(batch)
    tell("reading the parameters")
    audits = audit(model)

    def look() -> tuple[Subject, Evidence]:
        with watching(model) as guard:
            subject = Subject(model, batch, loss, guard, seed, samples)
            return subject, _look(subject, audits, limit, tell, record or Record())

    # Where NaN is not asked for, a forward that refuses it fails.
    (subject, evidence), refused = finite_again(model, look) if "N401" in chosen else (look(), "")
    evidence = replace(evidence, refused=refused)
    wanted = chosen & _OF_ENTRIES if refused else chosen
    findings = tuple(f for f in judge(evidence) if f.code in wanted)
    blamed = {f.code for f in findings if f.severity == "error" and f.code[0] in "SP"}
    if blamed and (noise := _noise(batch, seed)) is not None:
        again = partial(examined, seed=seed, dtype=dtype, select=blamed, record=record)
        _require_fault(lambda: again(model, noise, loss)[0])
    ignored = tuple(code for code in RULES if code not in chosen)
    seconds = time.perf_counter() - started
    return _report(subject, evidence, findings, ignored, seconds), evidence


def _look(
    subject: Subject,
    audits: tuple[Audit, ...],
    limit: tuple[float, str],
    tell: Callable[[str], None],
    record: Record,
) -> Evidence:
    """Everything the rules judge; a second pass only where the first made something not finite."""
    tell("running forward and backward")
    try:
        seen, gradients, rows = _first_pass(subject, limit[0] if limit[0] < _NARROW else None)
    except ForwardError as error:
        raise ForwardError(f"{error}{_not_finite_before(subject)}") from error.__cause__
    if not _finite(seen) and seen.first_bad is None:
        tell("looking for the first value that is not finite")
        seen, gradients, rows = _first_pass(subject, torch.finfo(torch.float32).max)
    _blame_loss(subject, seen, audits)
    met = None
    if not any(seen.gradients.values()) and _is_met(subject):
        met, subject = seen.loss, replace(subject, loss=None)
        seen, gradients, rows = _first_pass(subject, limit[0] if limit[0] < _NARROW else None)
    symmetry, distinct = examine(subject, seen, gradients, rows, tell)
    trunk = stations(seen, seen.architecture.trunk)
    branches, inside = residual_branches(seen.architecture)
    return Evidence(
        seen=seen,
        layers=_layers(subject, seen, distinct, audits, inside),
        branches=branches,
        trunk=trunk,
        towers=towers_of(seen),
        symmetry=symmetry,
        audits=audits,
        depth=depth_of(trunk),
        samples=subject.samples,
        input_variation=_input_variation(subject.batch, subject.samples),
        limit=limit,
        input_rms=_input_rms(subject.batch),
        out_of_range=seen.first_bad,
        misplaced=misplaced(subject, seen),
        rows=rows,
        repeats=repeated_rows(subject.model),
        unwritten=record.unwritten(subject.model),
        idle=record.idle(subject.model),
        lost=record.lost(subject.model),
        thrown=record.thrown(subject.model),
        shared=shared(subject.model),
        met=met,
        at_unit=_at_unit_size(subject, seen),
    )


def _layers(
    subject: Subject,
    seen: Pass,
    distinct: Mapping[Key, int],
    audits: tuple[Audit, ...],
    inside: Mapping[str, int],
) -> tuple[LayerStats, ...]:
    """What was measured of each layer, where it stands, and what theory says of it."""
    sizes = {a.name: a.rms for a in audits if not a.nonfinite}
    foretold = predictions(seen, sizes, subject.samples)
    found = []
    for layer in seen.architecture.layers:
        stats = layer_stats(layer, seen, distinct.get(layer.key, layer.units))
        told = foretold.get(layer.name)
        found.append(
            replace(
                stats,
                correlation=between_samples(stats.variation, subject.samples),
                predicted_rms=None if told is None else told.rms,
                predicted_correlation=None if told is None else told.correlation,
                branch=inside.get(layer.name),
            )
        )
    return tuple(found)


def _first_pass(
    subject: Subject, limit: float | None
) -> tuple[Pass, dict[str, Tensor | None], tuple[RowSet, ...]]:
    """The watched pass of the model itself, its gradients where any of them is zero, and the
    parameters whose rows look like copies in it.

    With a limit, the first call beyond it is found.
    """
    recorder = Recorder(subject.seed, subject.samples, limit=limit)
    seen, gradients = run_pass(subject, recorder)
    subject.guard.reject_changed("a check")
    rows = alike_rows(subject.model, seen, gradients)
    return seen, gradients if 0.0 in seen.gradients.values() else {}, rows


def _not_finite_before(subject: Subject) -> str:
    """What was not finite before a pass raised, as the logarithm in a loss does of NaN; or ""."""
    recorder = Recorder(subject.seed, subject.samples, limit=torch.finfo(torch.float32).max)
    with contextlib.suppress(FaninError):
        run_pass(subject, recorder)
    call, value = recorder.first_bad or (None, 0.0)
    if call is None or call.op in PASSIVE:  # which hands on what was there: memory not yet written
        return ""
    source = weighted_source(recorder.calls, call)
    behind = "" if source is None or source is call else f" behind {source.parameters[0]}"
    where = f" in {call.module}" if call.module else ""
    return f"; before that, {call.op}{where}{behind} gave {value}"


def _blame_loss(subject: Subject, seen: Pass, audits: tuple[Audit, ...]) -> None:
    """A loss that is not finite is its own fault only where everything before it is finite, and
    other weights make it no better."""
    cells = seen.cells.values()
    explained = any(a.nonfinite for a in audits) or any(c.nonfinite for c in cells)
    huge = any(c.max_abs > _HUGE for c in cells)
    inside = seen.first_bad is not None and seen.first_bad[0].index < seen.architecture.trace.length
    if not math.isfinite(seen.loss) and not explained and not huge and not inside:
        if seen.first_bad is not None and _is_finite_anew(subject):
            return
        told = f"loss: it is {seen.loss} although the model's layers give finite values"
        if seen.first_bad is not None:
            told += f"; {seen.first_bad[0].op} gives the first that is not"
        raise LossError(told)


def _is_met(subject: Subject) -> bool:
    """Whether the output is where the loss given is least, as zeros are of their squares.

    It then has no gradient, whatever the weights are, and a loss in general has to tell.
    """
    loss, noise = subject.loss, Noise(subject.seed)
    if loss is None:
        return False

    def cost(output: Any) -> float:
        reseed(subject.seed)
        return float(loss(output))

    def aside(tensor: Tensor) -> Tensor:
        return tensor + _STEP * noise.like(tensor) if tensor.is_floating_point() else tensor

    with contextlib.suppress(Exception), torch.no_grad():  # a loss may take derivatives itself
        args, kwargs = arguments(private(subject.batch))
        reseed(subject.seed)
        output = subject.model(*args, **kwargs)
        least = cost(output)
        return all(cost(map_batch(aside, output)) > least for _ in range(_ASIDE))
    return False


def _at_unit_size(subject: Subject, seen: Pass) -> float | None:
    """What the loss given would be, were no output larger than 1 in size; None where it is small,
    or where its guesses are known.  What has no gradient, as a target handed on, stays."""
    unknown = seen.named_loss and seen.chance is None and seen.guess is None
    if subject.loss is None or not unknown or not FAR**2 < seen.loss < math.inf:
        return None

    def unit(tensor: Tensor) -> Tensor:
        return tensor / max(1.0, rms(tensor)) if tensor.requires_grad else tensor

    with contextlib.suppress(Exception):  # a loss may take derivatives by what the model was given
        args, kwargs = arguments(private(subject.batch))
        reseed(subject.seed)
        cost = subject.loss(map_batch(unit, subject.model(*args, **kwargs))).detach()
        return float(cost) if math.isfinite(cost) else None
    return None


def _is_finite_anew(subject: Subject) -> bool:
    """Whether the loss is a number with every weight drawn anew: then the start is to blame, as
    where a density is taken at a width that has underflowed."""
    try:
        recipe = plan(subject.model, subject.batch, seed=subject.seed)
        with lent(recipe, subject.model, seed=subject.seed):
            seen, _ = run_pass(subject, Recorder(subject.seed, subject.samples))
    except FaninError:
        return False
    return math.isfinite(seen.loss)


# Steps aside that all make a loss larger where it is least; where it has a slope, half of them do.
_ASIDE = 8
_STEP = 0.01  # so short that the square of one cannot hide the slope of a product of two
# Findings that need no pass.
_OF_ENTRIES = frozenset({"N401", "N402"})
# bfloat16 reaches as far as float32; only a dtype that ends below this has a range to look at.
_NARROW = 1e38
# A square of anything beyond this leaves float32; the loss cannot be blamed for that.
_HUGE = 1e15


def _finite(seen: Pass) -> bool:
    return math.isfinite(seen.loss) and not any(
        c.nonfinite or c.cotangent_nonfinite for c in seen.cells.values()
    )


# ---- the arguments -------------------------------------------------------------------------------


def _built(build: Any) -> tuple[nn.Module, Record]:
    if not callable(build):
        raise ArgumentError(
            f"model: {type(build).__name__} is not a torch.nn.Module, "
            "nor a function that builds one"
        )
    try:
        model, record = recorded(build)
    except Exception as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise ArgumentError(
            f"model: the function given, which is to build one, raised {told}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"model: the function given returned {type(model).__name__}, not a Module"
        )
    return model, record


def _noise(batch: Any, seed: int) -> Any | None:
    """Normal values in the place of a dummy, every input of which holds one value: zeros, ones."""
    inputs = [t for t in inputs_in(batch) if t.numel() > 1]
    if not all(t.layout == torch.strided and bool((t == t.flatten()[0]).all()) for t in inputs):
        return None
    if not any(t.is_floating_point() for t in inputs):  # tokens: which there are is not known
        return None
    source = torch.Generator("cpu").manual_seed(seed % 2**63)

    def drawn(tensor: Tensor) -> Tensor:
        one = not tensor.is_floating_point() or tensor.numel() < 2
        return (
            tensor if one else torch.randn(tensor.shape, generator=source, device="cpu").to(tensor)
        )

    return map_batch(drawn, batch)


def _require_fault(look: Callable[[], Report]) -> None:
    """Raise where errors of a dummy batch are none with other values: zeros leave every unit of a
    layer without biases dead, and norms divide what does not vary by nothing."""
    try:
        sound = look().ok
    except FaninError:  # not all models take any values: then what was found stands
        return
    if not sound:
        return
    raise BatchError(
        "batch: each input holds one value only, which makes errors of a model that has none with "
        "random values; give samples, or random values of that shape"
    )


def check_given(loss: Any, progress: Any, record: Any) -> None:
    """Raise ArgumentError for what is no function, or no record of a construction."""
    if loss is not None and not callable(loss):
        raise ArgumentError(
            f"loss: {type(loss).__name__} is not callable; "
            "give a function from the model's output to a scalar"
        )
    if progress is not None and not callable(progress):
        raise ArgumentError(
            f"progress: {type(progress).__name__} is not callable; give a function of a text"
        )
    if record is not None and not isinstance(record, Record):
        raise ArgumentError(
            f"record: {type(record).__name__}; what fanin.recording() gives is needed"
        )


def _codes(select: Iterable[str] | None, ignore: Iterable[str] | None) -> set[str]:
    chosen = set(RULES) if select is None else _matching("select", select)
    if not chosen:
        raise ArgumentError("select: it names no finding code, so nothing would be judged")
    return chosen if ignore is None else chosen - _matching("ignore", ignore)


def _matching(argument: str, prefixes: Iterable[str]) -> set[str]:
    prefixes = (prefixes,) if isinstance(prefixes, str) else tuple(prefixes)
    found: set[str] = set()
    for prefix in prefixes:
        word = str(prefix).upper()
        codes = {c for c, rule in RULES.items() if c.startswith(word) or rule.name.upper() == word}
        if not codes or not prefix:
            raise ArgumentError(
                f"{argument}: no finding code starts with {prefix!r}; known: {', '.join(RULES)}"
            )
        found |= codes
    return found


def _check_model(model: nn.Module) -> None:
    """Raise ModelError for a model that cannot be checked or trained."""
    reject_unwatchable(model)
    named = list(model.named_parameters())
    if not named:
        raise ModelError("model: it has no parameters, so there is nothing to check")
    for name, parameter in named:
        _check_parameter(name, parameter)
    for name, buffer in model.named_buffers():
        if isinstance(buffer, nn.parameter.UninitializedBuffer):
            raise ModelError(
                f"model: the lazy buffer {name!r} is not materialized; run the model once first"
            )
    if not any(p.requires_grad for _, p in named):
        raise ModelError(
            f"model: all {len(named)} parameters are frozen (requires_grad=False); "
            "nothing would train"
        )


def _check_parameter(name: str, parameter: nn.Parameter) -> None:
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        raise ModelError(
            f"model: the lazy parameter {name!r} is not materialized; run the model once first"
        )
    if parameter.is_meta:
        raise ModelError(
            f"model: the parameter {name!r} is on the meta device and has no values; "
            "initialize it first (model.to_empty(device=...) and an init), then check"
        )
    if parameter.is_inference():
        raise ModelError(
            f"model: the parameter {name!r} was made in inference mode and can have no gradient; "
            "build the model outside of torch.inference_mode()"
        )
    if parameter.layout != torch.strided or parameter.is_quantized:
        kind = "quantized" if parameter.is_quantized else f"sparse ({parameter.layout})"
        raise ModelError(
            f"model: the parameter {name!r} is {kind}; a check needs dense floating parameters"
        )


def _limit(model: nn.Module, dtype: torch.dtype | str | None) -> tuple[float, str]:
    """Largest finite value of the dtype that training will use, and its name."""
    if dtype is None:
        kinds = [p.dtype for p in model.parameters() if p.is_floating_point()]
        chosen = min(kinds, key=lambda d: torch.finfo(d).max, default=torch.float32)
    else:
        found: Any = dtype
        if isinstance(dtype, str):
            found = getattr(torch, dtype.removeprefix("torch."), None)
        if not isinstance(found, torch.dtype) or not found.is_floating_point:
            raise ArgumentError(
                f"dtype: {dtype!r}; float16, bfloat16, float32 or float64 is needed"
            )
        chosen = found
    return float(torch.finfo(chosen).max), str(chosen).removeprefix("torch.")


def _samples(batch: Any) -> int | None:
    for tensor in inputs_in(arguments(batch)):
        if tensor.dim() > 0:
            return tensor.shape[0]
    return None


def _input_variation(batch: Any, samples: int | None) -> float | None:
    """Largest relative spread of the batch's tensors across samples; None where it is not known."""
    if not samples or samples < 2:
        return None
    found = []
    for tensor in inputs_in(arguments(batch)):
        dense = tensor.layout == torch.strided
        if dense and tensor.dim() > 0 and tensor.shape[0] == samples and tensor.numel():
            spread = relative_spread(tensor.reshape(samples, -1).to(torch.float64), 0)
            found += [spread] if spread is not None else []
    return max(found, default=None)


def _input_rms(batch: Any) -> float | None:
    """Root mean square of the largest input that is a signal; None without one."""
    inputs = [t for t in signals_in(arguments(batch)) if not t.is_complex() and t.numel()]
    dense = [t.detach().double() for t in inputs if t.layout == torch.strided]
    return max((float(t.square().mean().sqrt()) for t in dense), default=None)


# ---- the report ----------------------------------------------------------------------------------


def _report(
    subject: Subject,
    evidence: Evidence,
    findings: tuple[Finding, ...],
    ignored: tuple[str, ...],
    seconds: float,
) -> Report:
    model = subject.model
    first = next(model.parameters())
    tensors = parameters_of(model)
    kinds = {str(p.dtype).removeprefix("torch.") for p in model.parameters()}
    return Report(
        model=type(model).__name__,
        parameters=sum(math.prod(p.shape) for p in tensors),
        trainable=sum(math.prod(p.shape) for p in tensors if p.trainable),
        tensors=len(tensors),
        dtype=", ".join(sorted(kinds)),
        device=str(first.device),
        loss=evidence.seen.loss if evidence.seen.named_loss else evidence.met,
        chance=None if evidence.seen.chance is None else evidence.seen.chance.loss,
        seed=subject.seed,
        samples=subject.samples,
        mode="train" if model.training else "eval",
        layers=evidence.layers,
        depth=evidence.depth,
        symmetry=evidence.symmetry,
        findings=findings,
        unnamed=evidence.seen.architecture.unnamed,
        seconds=seconds,
        versions=(("fanin", __version__), ("torch", str(torch.__version__))),
        branches=evidence.branches,
        starts=starts(model, evidence.seen.architecture),
        batch=tuple(_tensor(t) for t in inputs_in(arguments(subject.batch))),
        ignored=ignored,
        compute_dtype=evidence.limit[1],
    )


def _tensor(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
