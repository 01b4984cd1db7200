"""Models of transformers, from a model type or a config.json; never from the network."""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fanin.errors import TargetError
from fanin.targets.source import Loss, Source, first_line, guarded, package
from fanin.wording import did_you_mean

__all__ = ["source"]

TOKENS = 128  # length of an inferred text sample
TEXTS = 2  # samples in an inferred batch of text or sound
IMAGES = 4  # samples in an inferred batch of images

# In this order of preference: what the architecture is trained on, and the form of its labels.
_TASKS = (
    ("MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING", "tokens"),
    ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING", "tokens"),
    ("MODEL_FOR_MASKED_LM_MAPPING", "tokens"),
    ("MODEL_FOR_CAUSAL_LM_MAPPING", "tokens"),
    ("MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING", "pairs"),
    ("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING", "class"),
    ("MODEL_MAPPING", "none"),
)
# Only where a config.json asks for such a class in its `architectures`.
_OTHER_TASKS = (
    ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING", "class"),
    ("MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING", "class of each token"),
)


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Keep transformers and the hub library off the network for the duration."""
    hub: Any = importlib.import_module("huggingface_hub.constants")
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    before = {name: os.environ.get(name) for name in names}
    flag = hub.HF_HUB_OFFLINE
    os.environ.update(dict.fromkeys(names, "1"))
    hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = flag
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def source(name: str) -> Source:
    """Find a transformers model from a model type or the path of a config.json.

    Raises:
        TargetError: there is no such type or file, or the file is no configuration.
        MissingPackageError: transformers is not installed.
    """
    target = f"hf:{name}"
    transformers = package("transformers", target)
    with _offline():
        path = Path(name)
        if name in transformers.CONFIG_MAPPING:
            config, wanted = _default(transformers, name, target), None
        elif path.exists() or path.suffix == ".json":
            config, wanted = _read(transformers, path)
        else:
            hint = did_you_mean(name.rpartition("/")[2], transformers.CONFIG_MAPPING)
            raise TargetError(
                f"{target}: neither a model type of transformers nor the path of a config.json "
                f"(nothing is downloaded){hint}"
            )
        model_class, labels = _model_class(transformers, config, wanted, target)

    def construct() -> object:
        with _offline():
            return model_class(copy.deepcopy(config))

    def fits() -> None:
        _need_memory(construct, target)

    def infer(model: nn.Module, generator: torch.Generator) -> tuple[Any, Loss | None]:
        return _batch(model, config, labels, generator, target), None

    unknown = f"{target}: its inputs cannot be inferred, so give --input"
    construct_or_say = guarded(f"{target} cannot be built", construct)
    return Source(target, construct_or_say, guarded(unknown, infer), fits)


def _default(transformers: Any, name: str, target: str) -> Any:
    """Return the default configuration of a model type."""
    try:
        return transformers.CONFIG_MAPPING[name]()
    except Exception as error:
        raise TargetError(f"{target} has no default: {first_line(error)}") from error


def _read(transformers: Any, path: Path) -> tuple[Any, str | None]:
    """Read the configuration in a file, and the class its ``architectures`` names."""
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise TargetError(f"there is no file {path}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        kind = values.get("model_type") if isinstance(values, dict) else None
    except (OSError, ValueError) as error:
        raise TargetError(f"{path} cannot be read: {first_line(error)}") from error
    if kind is None:
        raise TargetError(f"{path} has no model_type, so it is no transformers configuration")
    if kind not in transformers.CONFIG_MAPPING:
        hint = did_you_mean(str(kind), transformers.CONFIG_MAPPING)
        raise TargetError(f"{path}: transformers has no model_type {kind}{hint}")
    try:
        config = transformers.CONFIG_MAPPING[kind].from_dict(values)
    except Exception as error:
        raise TargetError(f"{path} is no {kind} configuration: {first_line(error)}") from error
    architectures = values.get("architectures") or [None]
    return config, architectures[0]


def _model_class(
    transformers: Any, config: Any, wanted: str | None, target: str
) -> tuple[Callable[[Any], nn.Module], str]:
    """Return the model class for ``config`` and the form of its labels."""
    choices: dict[str, tuple[Callable[[Any], nn.Module], str]] = {}
    for mapping, labels in (*_TASKS, *_OTHER_TASKS):
        found = getattr(transformers, mapping).get(type(config), ())
        for choice in found if isinstance(found, tuple | list) else (found,):
            choices.setdefault(choice.__name__, (choice, labels))
    if wanted is None:
        if not choices:
            raise TargetError(f"{target}: transformers has no model for this configuration")
        return next(iter(choices.values()))
    if wanted in choices:
        return choices[wanted]
    model_class = getattr(transformers, wanted, None)
    if model_class is None:
        hint = did_you_mean(wanted, choices)
        raise TargetError(f"{target}: transformers has no class {wanted} (architectures){hint}")
    return model_class, "none"


def _need_memory(construct: Callable[[], object], target: str) -> None:
    """Raise when weights and gradients cannot fit: the system would end the process."""
    try:
        with torch.device("meta"):
            shapes = construct()
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except Exception:  # noqa: BLE001 - what cannot be built on meta, or no sysconf: not judged
        return
    assert isinstance(shapes, nn.Module)
    count = sum(parameter.numel() for parameter in shapes.parameters())
    bytes_ = sum(parameter.nbytes for parameter in shapes.parameters())
    if 2 * bytes_ > memory:
        raise TargetError(
            f"{target} has {count / 1e9:.1f} billion parameters: weights and gradients take "
            f"{2 * bytes_ / 1e9:.0f} GB, this machine has {memory / 1e9:.0f} GB; give the path "
            "of a config.json with fewer layers"
        )


def _batch(
    model: nn.Module, config: Any, labels: str, generator: torch.Generator, target: str
) -> dict[str, Any]:
    """Draw random inputs and labels in the form that the model's configuration asks for."""
    main = str(getattr(model, "main_input_name", "input_ids"))
    text = config.get_text_config()
    names = ("input_ids", "pixel_values") if labels == "pairs" else (main,)
    samples = IMAGES if "pixel_values" in names else TEXTS
    length = _text_length(model, text)
    batch: dict[str, Any] = {}
    for name in names:
        if name == "input_ids" and _count(text, "vocab_size"):
            batch[name] = _tokens(text, (samples, length), generator)
        elif name == "pixel_values":
            batch[name] = torch.randn(
                samples, *_image_size(config), generator=generator, device="cpu"
            )
        elif name == "input_values":
            batch[name] = torch.randn(samples, 16000, generator=generator, device="cpu")
        elif name == "input_features" and hasattr(config, "max_source_positions"):
            frames = 2 * config.max_source_positions
            batch[name] = torch.randn(
                samples, config.num_mel_bins, frames, generator=generator, device="cpu"
            )
        else:
            raise TargetError(
                f"{target}: the input {name} is not known here; give it with "
                f"--input {name}=SHAPE or --input {name}=tokens:SHAPE@BELOW"
            )
    takes = inspect.signature(model.forward).parameters
    if labels == "pairs" and "return_loss" in takes:
        batch["return_loss"] = True
    elif labels == "tokens" and "decoder_input_ids" in takes:
        tokens = _tokens(text, (samples, length + 1), generator)
        batch |= {"decoder_input_ids": tokens[:, :-1], "labels": tokens[:, 1:].contiguous()}
    elif labels == "tokens" and "labels" in takes:
        batch["labels"] = _tokens(text, (samples, length), generator)
    elif labels in ("class", "class of each token") and "labels" in takes:
        shape = (samples,) if labels == "class" else (samples, length)
        batch["labels"] = _classes(config.num_labels, shape, generator)
    return batch


def _classes(count: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw random classes, or numbers where one class means regression."""
    if count == 1:
        return torch.randn(shape, generator=generator, device="cpu")
    return torch.randint(count, shape, generator=generator, device="cpu")


def _count(config: Any, name: str) -> int | None:
    """Return a positive integer of a configuration, or None."""
    value = getattr(config, name, None)
    return value if isinstance(value, int) and value > 0 else None


def _tokens(config: Any, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw random ordinary tokens: padding and other special ones would be masked or refused."""
    allowed = torch.ones(config.vocab_size, dtype=torch.bool, device="cpu")
    for key, value in config.to_dict().items():
        if key.endswith(("_token_id", "_token_index")):
            for special in value if isinstance(value, list) else [value]:
                if isinstance(special, int) and 0 <= special < len(allowed):
                    allowed[special] = False
    if not allowed.any():
        allowed[:] = True
    tokens = allowed.nonzero().flatten()
    return tokens[torch.randint(len(tokens), shape, generator=generator, device="cpu")]


def _text_length(model: nn.Module, config: Any) -> int:
    """Return 128 tokens, fewer where the model has fewer positions."""
    names = ("max_position_embeddings", "max_target_positions")
    limits = [_count(config, name) or TOKENS for name in names]
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa counts positions from padding_idx + 1 on.
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - first)
    return max(1, min(TOKENS, *limits))


def _image_size(config: Any) -> tuple[int, int, int]:
    """Return channels, height and width of the images a configuration asks for."""
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", None) or 224
    height, width = (size[0], size[-1]) if isinstance(size, list | tuple) else (size, size)
    return _count(vision, "num_channels") or 3, height, width
