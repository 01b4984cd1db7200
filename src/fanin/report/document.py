"""The report as a JSON document, and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from fanin.errors import ArgumentError
from fanin.plain import as_json, to_plain
from fanin.report.record import Record

__all__ = ["SCHEMA_VERSION", "read", "schema", "to_dict", "to_json"]

SCHEMA_VERSION = 1
R = TypeVar("R", bound=Record)


def to_dict(record: Record) -> dict[str, Any]:
    """Return the report as JSON-ready values, as ``schema.json`` describes them.

    A figure that is not finite is written as the string ``"nan"``, ``"inf"`` or ``"-inf"``.

    Example::

        to_dict(report)["findings"][0]["code"]
    """
    document = to_plain(record)
    document["unnamed"] = [{"parameter": name, "seen": seen} for name, seen in record.unnamed]
    document["versions"] = dict(record.versions)
    return {"schema_version": SCHEMA_VERSION, "ok": record.ok, **document}


def to_json(record: Record, indent: int | None = 2) -> str:
    """Return :func:`to_dict` as strict JSON text in ASCII.

    Example::

        pathlib.Path("report.json").write_text(to_json(report))
    """
    return as_json(to_dict(record), indent)


def schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of :func:`to_dict`.

    Example::

        jsonschema.validate(report.to_dict(), schema())
    """
    text = resources.files("fanin.report").joinpath("schema.json").read_text(encoding="utf-8")
    return cast("dict[str, Any]", json.loads(text))


def read(kind: type[R], plain: Mapping[str, Any]) -> R:
    """Build a record of ``kind`` again from :func:`to_dict`.

    Raises:
        ArgumentError: ``plain`` is nothing that :func:`to_dict` of this version wrote.

    Example::

        read(Report, json.loads(text)) == report
    """
    if not isinstance(plain, Mapping):
        raise ArgumentError(f"plain: {type(plain).__name__}; what to_dict returned is needed")
    version = plain.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ArgumentError(
            f"plain: its schema_version is {version!r:.40}; {SCHEMA_VERSION} is needed"
        )
    try:
        pairs = {
            "unnamed": [(each["parameter"], each["seen"]) for each in plain["unnamed"]],
            "versions": list(plain["versions"].items()),
        }
        return cast("R", _value(kind, {**plain, **pairs}))
    except KeyError as error:
        raise ArgumentError(
            f"plain: it has no field {error}; all that to_dict returned is needed"
        ) from error


def _value(kind: Any, plain: Any) -> Any:
    """The opposite of `to_plain`; ``kind`` is the field's annotation."""
    arguments = get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        names = [field.name for field in dataclasses.fields(kind)]
        return cast("Any", kind)(**{name: _value(hints[name], plain[name]) for name in names})
    if get_origin(kind) is tuple:
        kinds = arguments[:1] * len(plain) if arguments[-1] is ... else arguments
        return tuple(_value(each, item) for each, item in zip(kinds, plain, strict=True))
    if float in (kind, *arguments) and plain is not None:
        return float(plain)
    return plain
