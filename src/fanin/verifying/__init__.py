"""A checkpoint held against the recipe and the seed that it is said to be made from.

stored   the tensors of safetensors files, read a run at a time
names    which tensor is which parameter
source   where the values of a parameter stand, joined or cut ones too
pieces   one tensor held against its start
result   what was found
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fanin.assignment import Assignment, Recipe
from fanin.checkpoint import origin
from fanin.draw import integer
from fanin.errors import ArgumentError, RecipeError
from fanin.fused import Fused
from fanin.verifying.names import Names, match
from fanin.verifying.pieces import compare
from fanin.verifying.result import Checked, Verification, render
from fanin.verifying.source import Source, fused_sources
from fanin.verifying.stored import Checkpoint, open_checkpoint

__all__ = ["Checked", "Verification", "render", "verify"]


def verify(
    checkpoint: str | Path,
    recipe: Recipe | None = None,
    seed: int | None = None,
    *,
    aliases: Mapping[str, str] | None = None,
    fused: Fused | None = None,
    jobs: int = 1,
    progress: Callable[[str, float], None] | None = None,
) -> Verification:
    """Say which tensors of a checkpoint are still exactly at their start, and which are not.

    Every value is computed again from the recipe and the seed, into the dtype of the checkpoint,
    and compared to the bit.  Neither the model nor its code is needed, and no more than a few
    megabytes at a time are in memory (schemes that draw a matrix as one, such as orthogonal: the
    whole matrix).

    Args:
        checkpoint: a safetensors file, an index of several, or a folder with one of them.
        recipe: that was applied; left out, the one that fanin wrote into the checkpoint.
        seed: of the draw; left out, the one in the checkpoint.
        aliases: parameter of the recipe → name in the checkpoint, where they are called otherwise.
        fused: what stands in one tensor of the checkpoint and is drawn under several names, as
            `Plan.apply_` takes it; or the other way round, what is drawn as one (a stack of
            experts) and stands in several.
        jobs: tensors compared at the same time.
        progress: called with what is under way and the share that is done.

    Raises:
        ArgumentError: the checkpoint cannot be read, or an argument is not allowed.
        RecipeError: the checkpoint holds no recipe, and none was given.

    Example::

        fanin.verify("start.safetensors").ok
        fanin.verify("folder", fanin.Plan.from_toml(text), seed=1)["h.0.weight"].first

    Source: `fanin.draw`: a value is a function of seed, name and place, and of nothing else.
    """
    if recipe is not None and not isinstance(recipe, Recipe):
        raise ArgumentError(f"recipe: {type(recipe).__name__}; a fanin.Plan or Recipe is needed")
    if aliases is not None and not isinstance(aliases, Mapping):
        raise ArgumentError(
            f"aliases: {type(aliases).__name__}; a mapping from a parameter to its name in the "
            "checkpoint is needed"
        )
    integer("seed", 0 if seed is None else seed, 0, 2**64)
    integer("jobs", jobs, 1, 2**31)
    held = open_checkpoint(checkpoint)
    given = recipe is not None, seed is not None
    if recipe is None or seed is None:
        recipe, seed = _origin(checkpoint, held, recipe, seed)
    sources = fused_sources(fused or {}, held, recipe)
    known = {**held.aliases, **{key: key for key in held.tensors}}
    alone = [a.parameter for a in recipe.assignments if a.parameter not in sources]
    names = match(alone, known, aliases)
    sources |= {name: Source.of(key, held.tensors[key]) for name, key in names.keys.items()}
    work = [(a, sources.get(a.parameter)) for a in recipe.assignments]
    drawn = _compared(work, seed, jobs, progress or (lambda text, done: None))
    others = _others(held, sources.values(), names, recipe)
    source = ("from the checkpoint", "as given")
    notes = (
        *_seeds(held, seed),
        f"recipe: {recipe.scheme}, {source[given[0]]}; seed: {seed}, {source[given[1]]}",
        *_notes(names, recipe, held, sources),
    )
    return Verification(str(checkpoint), recipe.scheme, seed, (*drawn, *others), notes)


def _origin(
    checkpoint: str | Path, held: Checkpoint, recipe: Recipe | None, seed: int | None
) -> tuple[Recipe, int]:
    """What was not given, as fanin wrote it into each file of the checkpoint."""
    files = (stored.path for stored in held.tensors.values())
    try:
        written, number = origin(next(files, checkpoint))
    except RecipeError as error:
        missing = "recipe" if recipe is None else "seed"
        raise RecipeError(f"{missing}: none was given, and {error}") from error
    return recipe or written, number if seed is None else seed


def _seeds(held: Checkpoint, seed: int) -> Iterator[str]:
    """Say so where the checkpoint names another seed."""
    path = next((stored.path for stored in held.tensors.values()), None)
    with contextlib.suppress(RecipeError):
        written = seed if path is None else origin(path)[1]
        if written != seed:
            yield f"the checkpoint says that it was drawn with seed {written}, not {seed}"


def _compared(
    work: Sequence[tuple[Assignment, Source | None]],
    seed: int,
    jobs: int,
    progress: Callable[[str, float], None],
) -> tuple[Checked, ...]:
    """One result for each assignment, in their order."""
    total = sum(source.count for _, source in work if source is not None) or 1
    done, stopped, lock = 0, threading.Event(), threading.Lock()

    def judge(pair: tuple[Assignment, Source | None]) -> Checked:
        assignment, source = pair
        if source is None:
            return Checked(assignment.parameter, "missing", shape=tuple(assignment.shape))

        def tick(count: int) -> None:
            nonlocal done
            if stopped.is_set():
                raise InterruptedError
            with lock:
                done += count
                progress(assignment.parameter, min(1.0, done / total))

        return compare(assignment, seed, source, tick)

    if jobs == 1:
        return tuple(map(judge, work))
    with ThreadPoolExecutor(jobs) as pool:
        try:
            return tuple(pool.map(judge, work))
        finally:
            stopped.set()  # an error or Ctrl-C does not wait for the others
            pool.shutdown(wait=False, cancel_futures=True)


def _others(
    held: Checkpoint, sources: Iterable[Source], names: Names, recipe: Recipe
) -> Iterator[Checked]:
    """The tensors of the checkpoint that the recipe does not draw."""
    used = {id(box.stored) for source in sources for box in source.boxes}
    for key, stored in held.tensors.items():
        if id(stored) not in used:
            name = names.parameter(key)
            told = recipe.untouched.get(name)
            yield Checked(
                key if told is None else name,
                "not in the recipe" if told is None else "left as it was",
                key=key,
                found_shape=stored.shape,
                dtype=stored.kind,
                told=told or "",
            )


def _notes(
    names: Names, recipe: Recipe, held: Checkpoint, sources: Mapping[str, Source]
) -> Iterator[str]:
    """Say how names were matched, where it is not plain."""
    if names.added:
        yield f"names in the checkpoint begin with {names.added!r}, those of the recipe do not"
    if names.removed:
        yield f"names in the recipe begin with {names.removed!r}, those of the checkpoint do not"
    if recipe.assignments and not sources:
        first, other = recipe.assignments[0].parameter, next(iter(held.tensors), None)
        told = "the checkpoint is empty" if other is None else f"it has {other!r}"
        yield f"no parameter of the recipe is in the checkpoint: {first!r} is not, {told}"
