"""``fanin init --out``: the options of a checkpoint in a folder, and its writing."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

import click
import torch
from torch import nn

from fanin.assignment import Recipe
from fanin.cli.options import DTYPES, Integer
from fanin.cli.progress import ByteBar
from fanin.streaming import SHARD_SIZE, Written, ranks_of, write

__all__ = ["FolderOptions", "folder_options", "own_dtype", "write_folder"]

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {f"{letter}I": 2 ** (10 * k) for k, letter in enumerate("KMGT", 1)}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) *([KMGT]?I?)B?", re.IGNORECASE)


@dataclass(frozen=True)
class FolderOptions:
    """What only a checkpoint in a folder takes; None where it was not given."""

    shard_size: int | None
    jobs: int | None
    dtype: str | None
    overwrite: bool

    @property
    def given(self) -> str:
        """The first option that was given; "" where none was."""
        told = {
            "--shard-size": self.shard_size,
            "--jobs": self.jobs,
            "--dtype": self.dtype,
            "--overwrite": self.overwrite or None,
        }
        return next((name for name, value in told.items() if value is not None), "")


def _bytes(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> int | None:
    """Read a number of bytes such as 5GB, 500MB or 2GiB."""
    if text is None:
        return None
    found = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None or float(found[1]) * unit < 1:
        raise click.BadParameter(f"{text!r} is no size such as 5GB, 500MB or 2GiB")
    return int(float(found[1]) * unit)


_OPTIONS = (
    click.option(
        "--shard-size",
        metavar="SIZE",
        callback=_bytes,
        help="With --out: the size of one file, such as 500MB; default: 5GB.",
    ),
    click.option(
        "--jobs",
        type=Integer(1, 64),
        metavar="N",
        help="With --out: threads that draw and write; default: one for each processor, up to 8.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(list(DTYPES)),
        help="With --out: dtype of the floating-point tensors; default: the configuration's.",
    ),
    click.option(
        "--overwrite",
        is_flag=True,
        help="With --out: replace an older checkpoint, when the new one is complete.",
    ),
)


def folder_options(command: Any) -> Any:
    """Add the options of a checkpoint in a folder."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def own_dtype(model: nn.Module) -> torch.dtype | None:
    """The dtype that a transformers model's configuration names; None where there is none.

    The model itself is built, planned and checked in float32.
    """
    dtype = getattr(getattr(model, "config", None), "dtype", None)
    return dtype if dtype in DTYPES.values() else None


def write_folder(
    model: nn.Module,
    recipe: Recipe,
    place: str,
    options: FolderOptions,
    *,
    seed: int,
    frozen: bool,
    quiet: bool,
) -> Written:
    """Write a checkpoint, with a bar on a terminal; under torchrun, this process's part of it.

    Raises:
        FaninError: as `fanin.streaming.write`.
    """
    try:
        with ByteBar(f"writing {place}", quiet=quiet) as bar:
            return write(
                model,
                recipe,
                place,
                seed=seed,
                shard_size=options.shard_size or SHARD_SIZE,
                dtype=DTYPES[options.dtype] if options.dtype else own_dtype(model),
                jobs=options.jobs,
                frozen=frozen,
                overwrite=options.overwrite,
                progress=bar,
                ranks=ranks_of(os.environ),
            )
    except KeyboardInterrupt:
        click.echo(f"fanin: {place}: unfinished; the same command goes on with it", err=True)
        raise
