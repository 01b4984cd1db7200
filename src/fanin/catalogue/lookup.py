"""All schemes by name, and their documents."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from fanin.catalogue.basic import BASIC
from fanin.catalogue.biases import BIASES
from fanin.catalogue.mimetic import MIMETIC
from fanin.catalogue.models import MODELS
from fanin.catalogue.scaled import SCALED
from fanin.catalogue.scheme import Argument, Scheme
from fanin.catalogue.structured import STRUCTURED
from fanin.errors import ArgumentError
from fanin.wording import did_you_mean

__all__ = ["ALIASES", "SCHEMES", "document", "find"]

#: Every scheme by name (read-only).
SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {s.name: s for s in (*BASIC, *SCALED, *STRUCTURED, *BIASES, *MIMETIC, *MODELS)}
)

#: Names that other libraries use → names here (read-only).
ALIASES: Mapping[str, str] = MappingProxyType(
    {
        **{f"kaiming_{form}": f"he_{form}" for form in ("normal", "uniform", "trunc_normal")},
        **{f"glorot_{form}": f"xavier_{form}" for form in ("normal", "uniform", "trunc_normal")},
        **{f"le_cun_{form}": f"lecun_{form}" for form in ("normal", "uniform", "trunc_normal")},
        "msra": "he_normal",
        "zero": "zeros",
        "one": "ones",
        "eye": "identity",
        "random_normal": "normal",
        "random_uniform": "uniform",
        "truncated_normal": "trunc_normal",
        "trunc_normal_tf": "trunc_normal",
        "edge_of_chaos": "critical",
        "zer_o": "zero_hadamard",
        "chrono": "chrono_bias",
        "forget_bias": "forget_gate_bias",
        "bilinear": "bilinear_upsampling",
        "gpt2": "residual_scaling",
        "tfixup": "t_fixup",
        "olmo": "depthwise_trunc_normal",
        "mitchell": "depthwise_trunc_normal",
        "krahenbuhl": "within_layer",
    }
)

_WIDTH = 100  # of a document, as of the rules' documents


def find(name: str) -> Scheme:
    """The scheme of a name, of an alias, or of either as torch, Keras or JAX write it.

    Raises:
        ArgumentError: there is none; the nearest names are offered.

    >>> find("kaiming_normal_").name, find("GlorotUniform").name
    ('he_normal', 'xavier_uniform')
    """
    if isinstance(name, Scheme):
        raise ArgumentError(f"scheme: a Scheme was given; its name is needed, here {name.name!r}")
    if not isinstance(name, str):
        raise ArgumentError(f"scheme: {name!r} is not the name of a scheme, such as 'he_normal'")
    if name in SCHEMES:  # the usual case, once for each parameter
        return SCHEMES[name]
    plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip()).lower().replace("-", "_")
    plain = plain.rstrip("_")
    for form in (name, plain, re.sub("_(init|initializer)$", "", plain)):
        found = SCHEMES.get(ALIASES.get(form, form))
        if found is not None:
            return found
    hint = did_you_mean(plain, [*SCHEMES, *ALIASES]) or "; fanin.schemes holds all"
    raise ArgumentError(f"scheme: there is no {_line(name)!r}{hint}")


def document(name: str) -> str:
    """The Markdown document of a scheme: formula, arguments, when, example, source.

    Raises:
        ArgumentError: there is no such scheme; the nearest names are offered.

    >>> document("kaiming_normal").splitlines()[0]
    '# he_normal'
    """
    scheme = find(name)
    also = [alias for alias, target in ALIASES.items() if target == scheme.name]
    lead = f"{scheme.summary[0].upper()}{scheme.summary[1:]}."
    if also:
        lead += f" Also called {', '.join(also)}."
    needs = f"Fills {scheme.needs}." if scheme.scope == "tensor" and scheme.needs else ""
    if scheme.scope == "model":
        needs = f"Needs {scheme.needs}: `fanin.init_` and `fanin.plan` take it, `fill_` does not."
    by_mode = ", or by what `mode` says" if any(a.name == "mode" for a in scheme.arguments) else ""
    fan = f"Divides by the {scheme.fan}{by_mode}." if scheme.fan else ""
    parts = [
        f"# {scheme.name}",
        lead,
        "## Formula",
        scheme.formula,
        " ".join(filter(None, (fan, needs))),
        "## Arguments",
        "\n".join(_wrapped(_argument(a)) for a in _arguments(scheme)),
        "## When to use it",
        scheme.when,
        "## Example",
        f"```python\nimport torch\n\nimport fanin\n\n{scheme.example.strip()}\n```",
        "## Source",
        _linked(scheme.source),
    ]
    return "\n\n".join(_wrapped(p) for p in parts if p) + "\n"


def _arguments(scheme: Scheme) -> tuple[Argument, ...]:
    allowed = "a finite number" if scheme.signed else "a finite number, 0 or more"
    return (Argument("gain", 1.0, allowed, lambda v: True), *scheme.arguments)


def _argument(argument: Argument) -> str:
    if argument.name == "centred":
        return (
            "- `centred` (False): True or False; the weights of each unit sum to zero over its "
            "inputs (of each kernel tap), at the same std"
        )
    return f"- `{argument.name}` ({argument.default!r}): {argument.allowed}"


def _linked(source: str) -> str:
    linked = re.sub(r"arXiv:(\S+?)(?=[;,]|$)", r"[arXiv:\1](https://arxiv.org/abs/\1)", source)
    return re.sub(r"(?<!\()(https://\S+?)(?=[;,]|$)", r"[\1](\1)", linked)


def _wrapped(paragraph: str) -> str:
    """Lines of at most _WIDTH characters, where a link does not need more."""
    if paragraph.startswith(("#", "```")) or "\n" in paragraph:
        return paragraph
    indent = "  " if paragraph.startswith("- ") else ""
    lines = [""]
    for word in paragraph.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if len(longer) > _WIDTH and lines[-1]:
            lines.append(indent + word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def _line(text: str) -> str:
    """A name as it can stand in a message of one line."""
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}…"
