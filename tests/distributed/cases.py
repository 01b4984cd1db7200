"""What is tried, on how many ranks, and what one process alone would have drawn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from catalogue import ALONE, WHOLE, Table, recipe_of
from models import MODELS, Model
from torch import Tensor, nn

import fanin
from fanin.assignment import Recipe

__all__ = ["CASES", "WORLDS", "Case", "Truth", "truth_of"]

WORLDS = (1, 2, 3, 4, 8)
_SQUARE = (4, 8)  # numbers of ranks that make a mesh of two dimensions
_LARGE = 2**63 + 11  # a seed that fills all 64 bits


@dataclass(frozen=True)
class Case:
    """One thing that every rank does to one sharded model, and has to find as it should be.

    Attributes:
        model: one of `models.MODELS`, or "alone" or "whole", the tables of `catalogue`.
        style: one of `placing.STYLES`.
        worlds: the numbers of ranks it is tried with.
        does: the function of `worker.py` that does it.
        start: what the parameters are before: "real", "empty" (memory without values) or "meta".
        scheme: of the plan.
        dtype: of the model.
        seed: of the draw.
        frozen: paths of parameters that require no gradient.
        spoken: whether ranks may talk to one another.
    """

    model: str
    style: str
    worlds: tuple[int, ...] = WORLDS
    does: str = "applies"
    start: str = "real"
    scheme: str = "auto"
    dtype: str = "float32"
    seed: int = 0
    frozen: tuple[str, ...] = ()
    spoken: bool = False

    @property
    def name(self) -> str:
        """All that is not as usual."""
        usual = Case(self.model, self.style)
        fields = ("does", "start", "scheme", "dtype", "seed", "frozen")
        other = [getattr(self, f) for f in fields if getattr(self, f) != getattr(usual, f)]
        shown = ["frozen" if isinstance(o, tuple) else str(o) for o in other]
        return ", ".join([self.model, self.style, *shown])

    @property
    def own(self) -> Model:
        """The model's maker."""
        if self.model in MODELS:
            return MODELS[self.model]
        rows = ALONE if self.model == "alone" else WHOLE
        return Model(lambda: Table(rows), lambda generator: torch.empty(0))

    def made(self, device: str = "cpu") -> nn.Module:
        """The model in one piece, as it is before anything is drawn."""
        model = self.own.made(device, getattr(torch, self.dtype))
        for path in self.frozen:
            model.get_parameter(path).requires_grad_(False)
        return model

    def inputs(self) -> Tensor:
        return self.own.inputs(getattr(torch, self.dtype))

    def recipe(self, model: nn.Module) -> Recipe:
        """What one process decides with the whole batch."""
        if self.model in MODELS:
            return fanin.plan(model, self.inputs(), self.scheme, seed=self.seed)
        return recipe_of(ALONE if self.model == "alone" else WHOLE)

    @property
    def truth(self) -> str:
        """Names the file of the truth; the same for cases that must come to the same."""
        key = (self.own.apart or self.model, self.scheme, self.dtype, self.seed, *self.frozen)
        return "-".join(map(str, key)).replace(" ", "_") + ".pt"


@dataclass(frozen=True)
class Truth:
    """What one process drew: the recipe, and the parameters after it."""

    recipe: Recipe
    values: dict[str, Tensor]

    def save(self, path: Path) -> None:
        """Write it; `load` reads it."""
        torch.save((self.recipe, self.values), path)

    @classmethod
    def load(cls, path: Path) -> Truth:
        return cls(*torch.load(path, weights_only=False, mmap=True))


def truth_of(case: Case) -> Truth:
    """Draw a case in one piece, in this process."""
    case = replace(case, model=case.own.apart or case.model)
    model = case.made()
    recipe = case.recipe(model)
    fanin.Plan.of(recipe).apply_(model, case.seed)
    return Truth(recipe, {n: p.detach() for n, p in model.named_parameters()})


def _each(worlds: tuple[int, ...], does: str, *pairs: tuple[str, str], **given: Any) -> list[Case]:
    return [Case(model, style, worlds, does, **given) for model, style in pairs]


_FSDP, _TP, _BOTH = "fsdp", "tp", "fsdp tp"

CASES = [
    Case("llama", _FSDP, (2,), "watches"),
    # Every way to shard a model, uneven sizes and empty shards.
    *_each(WORLDS, "applies", ("llama", _FSDP), ("llama", _TP), ("vit", _FSDP), ("vit", _TP)),
    *_each(_SQUARE, "applies", ("llama", _BOTH), ("llama", "hsdp"), ("vit", _BOTH)),
    *_each(_SQUARE, "applies", ("vit", "hsdp"), ("mixture", "fsdp experts")),
    *_each((8,), "applies", ("llama", "hsdp tp"), ("vit", "hsdp tp")),
    *_each((3, 8), "applies", ("mixture", "experts"), ("mixture", _FSDP), ("cnn", "rows")),
    *_each((1, 2, 4), "applies", ("mixture", "experts"), ("cnn", "rows")),
    *_each((2, 4), "applies", ("even llama", "fsdp second"), ("cnn", "columns"), ("mlp", _TP)),
    *_each((3,), "applies", ("llama", "fsdp kept"), ("llama", "fsdp resharded")),
    *_each((2, 3), "applies", ("llama", "fsdp mixed"), ("vit", "fsdp mixed")),
    # From the meta device: memory without values, or no memory at all.
    *_each((1, 3), "applies", ("llama", _FSDP), ("vit", _TP), start="empty"),
    *_each((3,), "applies", ("mixture", "experts"), start="empty"),
    *_each((4,), "applies", ("llama", _BOTH), ("vit", "hsdp"), ("cnn", "rows"), start="empty"),
    *_each((1, 3, 8), "applies", ("llama", _FSDP), start="meta"),
    *_each((3,), "applies", ("vit", _TP), start="meta"),
    *_each((3,), "applies", ("llama", _TP), ("vit", _FSDP), start="meta"),
    *_each((3,), "applies", ("mixture", "experts"), ("mixture", _FSDP), start="meta"),
    *_each((4,), "applies", ("llama", _BOTH), ("vit", "hsdp"), start="meta"),
    *_each((4,), "applies", ("mixture", "fsdp experts"), ("cnn", "rows"), start="meta"),
    *_each((2,), "applies", ("normed", _FSDP), start="meta"),
    *_each((2, 4), "applies", ("even llama", "fsdp second"), start="meta"),
    *_each((8,), "applies", ("llama", "hsdp tp"), start="meta"),
    # Other dtypes and seeds.
    *_each((3,), "applies", ("llama", _FSDP), ("vit", _TP), start="meta", dtype="bfloat16"),
    *_each((4,), "applies", ("llama", _BOTH), ("vit", "hsdp"), start="empty", dtype="bfloat16"),
    *_each((2,), "applies", ("llama", _FSDP), dtype="float16"),
    *_each((2,), "applies", ("vit", _FSDP), dtype="float64"),
    *_each((2,), "applies", ("llama", _FSDP), seed=_LARGE),
    *_each((4,), "applies", ("llama", _BOTH), seed=1),
    # Tied and frozen parameters.
    *_each((1, 2, 3, 8), "applies", ("tied llama", _FSDP)),
    *_each((4,), "applies", ("tied llama", _BOTH), ("tied llama", "hsdp")),
    *_each((3,), "applies", ("tied llama", _FSDP), ("tied llama", _TP), start="empty"),
    *_each((2, 3), "applies", ("tied llama", _FSDP), ("tied llama", _TP), start="meta"),
    *_each((2,), "applies", ("llama", _FSDP), frozen=("embed.weight", "norm.weight")),
    *_each((4,), "applies", ("llama", _BOTH), frozen=("head.weight",)),
    # Every scheme; those that fill any part alone do so in silence.
    *(
        case
        for model, spoken in (("alone", False), ("whole", True))
        for case in (
            *_each((1, 2), "applies", (model, "rows"), spoken=spoken),
            *_each((3,), "applies", (model, "rows"), dtype="bfloat16", spoken=spoken),
            *_each((3,), "applies", (model, "columns"), spoken=spoken),
            *_each((4,), "applies", (model, "rows columns"), dtype="float16", spoken=spoken),
            *_each((4,), "applies", (model, "columns rows"), dtype="bfloat16", spoken=spoken),
            *_each((2,), "applies", (model, _FSDP), spoken=spoken),
            *_each((2,), "applies", (model, "copies"), (model, "rows turned"), spoken=spoken),
            *_each((2,), "applies", (model, "rows transposed"), spoken=spoken),
            *_each((4,), "applies", (model, "rows columns crossed"), spoken=spoken),
            *_each((4,), "applies", (model, "hsdp"), (model, "copies rows"), spoken=spoken),
            *_each((8,), "applies", (model, "rows rows"), spoken=spoken),
        )
    ),
    *_each((1, 3), "applies", ("llama", _FSDP), scheme="orthogonal", spoken=True),
    *_each((3,), "applies", ("vit", _TP), scheme="orthogonal", spoken=True),
    *_each((4,), "applies", ("llama", _BOTH), scheme="orthogonal", spoken=True),
    *_each((4,), "applies", ("vit", "hsdp"), scheme="orthogonal", spoken=True, start="meta"),
    *_each((4,), "applies", ("mixture", "fsdp experts"), scheme="orthogonal", spoken=True),
    # Several parameters in one tensor.
    *(
        case
        for scheme, spoken in (("auto", False), ("orthogonal", True))
        for case in (
            *_each((1, 3), "joins", ("joined llama", _FSDP), scheme=scheme, spoken=spoken),
            *_each((3,), "joins", ("stacked", "experts"), scheme=scheme, spoken=spoken),
            *_each((3,), "joins", ("stacked", "columns"), scheme=scheme, spoken=spoken),
            *_each((4,), "joins", ("stacked", "fsdp experts"), scheme=scheme, spoken=spoken),
            *_each((4,), "joins", ("joined llama", "rows columns"), scheme=scheme, spoken=spoken),
            *_each((2,), "joins", ("grouped llama", "rows"), scheme=scheme, spoken=spoken),
        )
    ),
    *_each((8,), "joins", ("stacked", "fsdp experts"), ("grouped llama", _FSDP), start="meta"),
    # Ways to come by a plan; ranks that do not wait for one another.
    *_each((8,), "takes turns", ("llama", _FSDP)),
    *_each((2,), "takes turns", ("vit", _TP)),
    *_each((4,), "takes turns", ("llama", _BOTH), ("llama", "hsdp"), start="meta"),
    *_each((2,), "plans", ("llama", _FSDP), ("llama", _TP), start="meta"),
    *_each((4,), "plans", ("llama", _BOTH), start="empty"),
    *_each((2,), "reads", ("vit", _FSDP), ("tied llama", _TP), start="meta"),
    *_each((3,), "initializes", ("llama", _TP), ("tied llama", _FSDP)),
    *_each((3,), "initializes and trains", ("llama", _FSDP)),
    *_each((2,), "initializes", ("meant", "rows")),
    *_each((3,), "initializes", ("meant", _FSDP)),
    *_each((4,), "initializes", ("meant", "hsdp")),
    *_each((2,), "initializes", ("even llama", _TP), ("tied llama", _FSDP), scheme="he_normal"),
    *_each((4,), "initializes and trains", ("even llama", _BOTH), ("even llama", "hsdp"), seed=1),
    *_each((2,), "initializes", ("llama", _FSDP), ("llama", "fsdp compiled"), start="meta"),
    # The values are used.
    *_each((3,), "runs first", ("llama", _FSDP), ("vit", "fsdp kept")),
    *_each((2,), "runs first", ("tied llama", _FSDP), ("llama", "fsdp kept")),
    *_each((4,), "runs first", ("even llama", _BOTH), ("llama", "hsdp")),
    *_each((1,), "trains", ("llama", _FSDP)),
    *_each((3,), "trains", ("vit", _FSDP)),
    *_each((8,), "trains", ("tied llama", _FSDP), start="meta"),
    *_each((3,), "trains", ("llama", "fsdp kept"), start="meta"),
    *_each((2,), "trains", ("even llama", _TP), ("even tied llama", _TP), start="meta"),
    *_each((2,), "trains", ("even llama", _TP), ("llama", _FSDP), start="empty"),
    *_each((4,), "trains", ("even llama", _BOTH), ("even tied llama", _BOTH), start="meta"),
    *_each((4,), "trains", ("llama", "hsdp"), ("even llama", "fsdp second"), start="meta"),
    # Scales measured on a batch.
    *(
        replace(case, scheme=scheme, spoken=True)
        for scheme in ("auto", "lsuv")
        for case in (
            *_each((1, 3), "measures", ("mlp", _FSDP)),
            *_each((2,), "measures whole", ("mlp", _TP)),
            *_each((3,), "measures unequal", ("mlp", _FSDP), ("cnn", "ddp")),
            *_each((3,), "measures whole", ("cnn", _FSDP), ("vit", _FSDP)),
            *_each((4,), "measures", ("mlp", "hsdp"), ("cnn", _FSDP)),
        )
    ),
    *_each((8,), "measures", ("mlp", _FSDP), scheme="auto", spoken=True),
    *_each((3,), "measures unequal", ("mlp", _FSDP), scheme="within_layer", spoken=True),
    *_each((4,), "measures", ("cnn", "hsdp"), scheme="within_layer", spoken=True),
    # All or nothing, in little memory.
    *_each((4,), "stays small", ("wide", _FSDP), ("wide", "columns")),
    *_each((4,), "stays small", ("wide", _FSDP), start="meta"),
    *_each((2,), "refuses seed", ("llama", _FSDP), ("vit", _TP)),
    *_each((3,), "refuses recipe", ("llama", _FSDP), ("vit", _TP)),
    *_each((2,), "refuses placement", ("llama", "terms")),
    *_each((2,), "refuses local recipe", ("llama", _FSDP), ("llama", _TP)),
    *_each((2,), "interrupted", ("llama", _FSDP), ("vit", _FSDP)),
    *_each((3,), "interrupted", ("llama", _FSDP), ("tied llama", _TP), start="meta"),
    *_each((4,), "interrupted", ("llama", _BOTH), ("llama", "hsdp"), start="empty"),
    *_each((3,), "fails alone", ("llama", _FSDP), scheme="orthogonal", spoken=True),
    *_each((4,), "fails alone", ("llama", _BOTH), scheme="orthogonal", spoken=True, start="meta"),
    # The first rank is not one of those that the parameters are spread over.
    *_each((3,), "applies", ("alone", "rows of some")),
    *_each((3,), "applies", ("whole", "rows of some"), spoken=True),
]
