"""Results as plain data and as strict JSON; one way to write figures that are not finite."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from fanin.errors import ArgumentError

__all__ = ["as_json", "to_plain"]


def to_plain(value: object) -> Any:
    """Dataclasses to objects, tuples to arrays, figures that are not finite to strings.

    >>> to_plain({"std": math.inf, "shape": (2, 3)})
    {'std': 'inf', 'shape': [2, 3]}
    """
    if dataclasses.is_dataclass(value):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: to_plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def as_json(plain: Mapping[str, Any], indent: Any) -> str:
    """Strict JSON text in ASCII.

    Raises:
        ArgumentError: the indent is no number of spaces, such as a path that is to be written to.

    >>> as_json({"ok": True}, None)
    '{"ok": true}'
    """
    if not isinstance(indent, int | None) or isinstance(indent, bool):
        raise ArgumentError(
            f"indent: {indent!r}; a number of spaces or None is needed (to_json returns the text; "
            "pathlib.Path(...).write_text writes it)"
        )
    return json.dumps(plain, indent=indent, allow_nan=False)
