"""Schemes that need a whole model: how deep it is, where its branches end, what it computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from fanin.catalogue.scheme import Argument, Scheme, among, integer, number, sizes
from fanin.errors import ArgumentError

__all__ = [
    "MODELS",
    "deepnorm_beta",
    "fixup_factor",
    "olmo_std",
    "spectral_factor",
    "t_fixup_factor",
]

_Arguments = Mapping[str, Any]
_Spread = Callable[[Any, _Arguments], float]


def _counted(name: str, what: str, low: int = 1) -> Argument:
    return integer(name, None, f"{what}, at least {low}, or None: counted in the model", low)


def _known(scheme: str, arguments: _Arguments, name: str) -> int:
    if arguments[name] is None:
        raise ArgumentError(f"{name}: missing; {scheme} counts it in a model, its std needs it")
    return int(arguments[name])


def fixup_factor(branches: int, layers: int) -> float:
    """L^(−1/(2m − 2)): what Fixup multiplies the weights of L branches of m layers with, m ≥ 2.

    >>> fixup_factor(16, 3)
    0.5

    Source: Zhang, Dauphin, Ma (2019), section 3: arXiv:1901.09321
    """
    return math.pow(branches, -1 / (2 * layers - 2))


def deepnorm_beta(layers: int, part: str = "alone", decoder_layers: int = 1) -> float:
    """β of DeepNorm for a stack of so many layers: "alone", or "encoder" and "decoder" of a pair.

    Only an encoder looks at `decoder_layers`.

    >>> deepnorm_beta(2), deepnorm_beta(108, "decoder")
    (0.5, 0.16666666666666666)

    Source: Wang, Ma, Dong, Huang, Zhang, Wei (2022), figure 2: arXiv:2203.00555
    """
    if part == "encoder":
        return float(0.87 * (layers**4 * decoder_layers) ** (-1 / 16))
    return float(((12 if part == "decoder" else 8) * layers) ** -0.25)


def t_fixup_factor(layers: int, part: str) -> float:
    """What T-Fixup multiplies the weights of an "encoder" or a "decoder" of so many layers with.

    >>> t_fixup_factor(16, "encoder"), t_fixup_factor(9, "decoder")
    (0.335, 0.3333333333333333)

    Source: Huang, Pérez, Ba, Volkovs (2020): https://proceedings.mlr.press/v119/huang20f.html
    """
    return float(0.67 * layers**-0.25 if part == "encoder" else (9 * layers) ** -0.25)


def olmo_std(block: int, fan_in: float = 1.0) -> float:
    """1/√(2·fan_in·(l + 1)): std of the last layer of the branches of block l = 0, 1, ….

    >>> olmo_std(1), olmo_std(1, 4.0)
    (0.5, 0.25)

    Source: Groeneveld et al. (2024), OLMo: arXiv:2402.00838
    """
    return 1 / math.sqrt(2 * fan_in * (block + 1))


def spectral_factor(fan_in: float, fan_out: float) -> float:
    """min(1, √(fan_out / fan_in)): what 1/√fan_in is multiplied with.

    >>> spectral_factor(16, 4), spectral_factor(4, 16)
    (0.5, 1.0)

    Source: Yang, Simon, Bernstein (2023), section 4: arXiv:2310.17813
    """
    return min(1.0, math.sqrt(fan_out / fan_in))


def _fixup(fan: float, arguments: _Arguments) -> float:
    branches, layers = (_known("fixup", arguments, n) for n in ("branches", "layers"))
    return math.sqrt(2 / fan) * fixup_factor(branches, layers)


def _residual(_: Any, arguments: _Arguments) -> float:
    layers = _known("residual_scaling", arguments, "layers")
    return float(arguments["base"]) / math.sqrt(2 * layers)


def _deepnorm(fan: float, arguments: _Arguments) -> float:
    layers, part = _known("deepnorm", arguments, "layers"), arguments["part"]
    other = _known("deepnorm", arguments, "decoder_layers") if part == "encoder" else 1
    return deepnorm_beta(layers, part, other) * math.sqrt(1 / fan)


def _t_fixup(fan: float, arguments: _Arguments) -> float:
    layers = _known("t_fixup", arguments, "layers")
    return t_fixup_factor(layers, arguments["part"]) * math.sqrt(1 / fan)


def _depthwise(fan: float, arguments: _Arguments) -> float:
    return olmo_std(_known("depthwise_trunc_normal", arguments, "layer"), fan)


def _mup(fan: float, arguments: _Arguments) -> float:
    return 1 / fan if arguments["part"] == "output" else 1 / math.sqrt(fan)


def _spectral(fan: Any, _: _Arguments) -> float:
    fan_in, fan_out, _kernel = sizes("spectral", fan)
    return spectral_factor(fan_in, fan_out) / math.sqrt(fan_in)


def _recurrent(fan: Any, _: _Arguments) -> float:
    inputs, hidden, _kernel = sizes("recurrent", fan)
    return 1 / math.sqrt(max(inputs, hidden))


def _lora(fan: float, arguments: _Arguments) -> float:
    return 0.0 if arguments["part"] == "B" else math.sqrt(1 / (3 * fan))


def _measured(scheme: str) -> _Spread:
    def spread(_fan: Any, _arguments: _Arguments) -> float:
        raise ArgumentError(
            f"scheme: {scheme} decides each std from the model and its batch; it has no closed form"
        )

    return spread


_PLAIN = """\
layers = [m for _ in range(8) for m in (torch.nn.Linear(16, 16), torch.nn.ReLU())]
model = torch.nn.Sequential(*layers, torch.nn.Linear(16, 4))
fanin.init_(model, torch.randn(64, 16), scheme="NAME")
"""

_RESIDUAL = """\
class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(16, 16), torch.nn.Linear(16, 16)

    def forward(self, x):
        return x + self.b(torch.relu(self.a(x)))


model = torch.nn.Sequential(*(Block() for _ in range(8)), torch.nn.Linear(16, 4))
fanin.init_(model, torch.randn(64, 16), scheme="NAME")
"""

_TRANSFORMER = """\
layer = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
model = torch.nn.TransformerEncoder(layer, 2)
fanin.init_(model, torch.randn(4, 10, 32), scheme="NAME")
"""

_RECURRENT = """\
model = torch.nn.LSTM(8, 16, batch_first=True)
fanin.init_(model, torch.randn(4, 10, 8), scheme="NAME")
"""

_LORA = """\
class Adapted(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.base = torch.nn.Linear(16, 16).requires_grad_(False)
        self.lora_A, self.lora_B = (torch.nn.Linear(*s, bias=False) for s in ((16, 4), (4, 16)))

    def forward(self, x):
        return self.base(x) + self.lora_B(self.lora_A(x))


fanin.init_(Adapted(), torch.randn(64, 16), scheme="NAME")
"""


def _model(
    name: str,
    summary: str,
    formula: str,
    when: str,
    source: str,
    spread: _Spread,
    example: str,
    fan: str | None = None,
    arguments: tuple[Argument, ...] = (),
    needs: str = "a whole model",
) -> Scheme:
    return Scheme(
        name,
        summary,
        formula,
        when,
        source,
        "model",
        spread,
        fan,
        "model",
        arguments,
        needs,
        example.replace("NAME", name),
    )


_RESIDUALS = (
    _model(
        "fixup",
        "residual branches scaled by their number, the last layer of each at zero",
        "std = gain·√(2 / fan_in)·L^(−1/(2m − 2)) in each of L branches of m layers; the last "
        "layer of each branch and the output layer 0; with learned scalar biases (0) and scales "
        "(1)",
        "Deep residual networks without norms. The loss starts at that of guessing.",
        "Zhang, Dauphin, Ma (2019), Fixup Initialization, section 3: arXiv:1901.09321",
        _fixup,
        _RESIDUAL,
        "fan_in",
        (
            _counted("branches", "the number of residual branches"),
            _counted("layers", "the number of layers in a branch", 2),
        ),
        "a model with residual branches",
    ),
    _model(
        "skipinit",
        "every residual branch starts at zero, by a scale at its end",
        "α = 0 for the scalar at the end of each branch (or its last layer, where there is none); "
        "He weights elsewhere",
        "Deep residual networks without norms, or in place of norms.",
        "De, Smith (2020), Batch Normalization Biases Residual Blocks Towards the Identity "
        "Function in Deep Networks, section 4: arXiv:2002.10444",
        lambda fan, arguments: 0.0,
        _RESIDUAL,
        needs="a model with residual branches",
    ),
    _model(
        "rezero",
        "every block starts as the identity",
        "x + α·F(x) with α = 0 (or the last layer of F, where there is no α)",
        "Deep residual networks and transformers without norms.",
        "Bachlechner, Majumder, Mao, Cottrell, McAuley (2021), ReZero is All You Need, section 3: "
        "arXiv:2003.04887",
        lambda fan, arguments: 0.0,
        _RESIDUAL,
        needs="a model with residual branches",
    ),
    _model(
        "residual_scaling",
        "GPT-2: small weights, smaller where a branch meets the residual stream",
        "std = gain·base for every weight, gain·base / √(2·layers) for the last layer of each of "
        "the 2·layers branches; biases 0, norms 1",
        "Transformers with norms inside the branches: the residual stream has the same variance at "
        "any depth.",
        "Radford, Wu, Child, Luan, Amodei, Sutskever (2019), Language Models are Unsupervised "
        "Multitask Learners, section 2.3",
        _residual,
        _TRANSFORMER,
        arguments=(
            _counted("layers", "the number of blocks"),
            number("base", 0.02, "a positive number", 0.0),
        ),
        needs="a transformer",
    ),
    _model(
        "deepnorm",
        "transformers of a thousand layers with the norm behind the sum",
        "std = gain·β·√(2 / (fan_in + fan_out)) for v, o and the feed-forward layers, β = 1 for q "
        "and k; x ← norm(α·x + F(x)); one stack of N layers: α = (2N)^¼, β = (8N)^(−¼); with both: "
        "encoder α = 0.81·(N⁴M)^(1/16), β = 0.87·(N⁴M)^(−1/16), decoder α = (3M)^¼, "
        "β = (12M)^(−¼)",
        "Deep post-norm transformers whose residual connection is multiplied with α.",
        "Wang, Ma, Dong, Huang, Zhang, Wei (2022), DeepNet, figure 2: arXiv:2203.00555",
        _deepnorm,
        _TRANSFORMER,
        "fan_avg",
        (
            _counted("layers", "the number of layers of this stack"),
            among("part", "alone", ("alone", "encoder", "decoder")),
            _counted("decoder_layers", "the number of decoder layers"),
        ),
        "a transformer with norms behind the sums",
    ),
    _model(
        "t_fixup",
        "transformers without norm and without warm-up",
        "std = gain·0.67·N^(−¼)·√(2 / (fan_in + fan_out)) for v, o and the feed-forward layers of "
        "an encoder of N layers, gain·(9M)^(−¼)·√(2 / (fan_in + fan_out)) of a decoder of M; "
        "embeddings N(0, 1/d) times the same factor",
        "Transformers whose norms were removed.",
        "Huang, Pérez, Ba, Volkovs (2020), Improving Transformer Optimization Through Better "
        "Initialization: https://proceedings.mlr.press/v119/huang20f.html",
        _t_fixup,
        _TRANSFORMER,
        "fan_avg",
        (
            _counted("layers", "the number of layers of this stack"),
            among("part", "encoder", ("encoder", "decoder")),
        ),
        "a transformer without norms",
    ),
    _model(
        "small_init",
        "transformers from small weights",
        "std = gain·√(2 / (5·d)), d the width of the residual stream",
        "Transformers with the norm before each branch.",
        "Nguyen, Salazar (2019), Transformers without Tears, section 2.2: arXiv:1910.05895",
        lambda fan, arguments: math.sqrt(2 / (5 * fan)),
        _TRANSFORMER,
        "fan_in",
        needs="a transformer",
    ),
    _model(
        "depthwise_trunc_normal",
        "OLMo: the last layer of a branch the smaller the deeper it is",
        "std = gain / √fan_in, gain / √(2·fan_in·(l + 1)) for the last layer of the branches of "
        "block l = 0, 1, …; cut at ±3σ",
        "Transformers with norms before each branch.",
        "Zhang, Titov, Sennrich (2019), Improving Deep Transformer with Depth-Scaled "
        "Initialization: arXiv:1908.11365; in this form OLMo, Groeneveld et al. (2024): "
        "arXiv:2402.00838",
        _depthwise,
        _TRANSFORMER,
        "fan_in",
        (_counted("layer", "the number of the block, from 0", 0),),
        "a transformer",
    ),
)

_WIDTHS = (
    _model(
        "mup",
        "weights whose best learning rate does not depend on the width",
        "std = gain·√(1 / fan_in) for input and hidden layers, gain / fan_in for the output layer",
        "Models that will be widened: tune a narrow one, keep its learning rates (which have to be "
        "scaled too: with Adam 1/fan_in for hidden layers).",
        "Yang, Hu, Babuschkin, Sidor, Liu, Farhi, Ryder, Pachocki, Chen, Gao (2022), Tensor "
        "Programs V, table 3: arXiv:2203.03466",
        _mup,
        _PLAIN,
        "fan_in",
        (among("part", "hidden", ("input", "hidden", "output")),),
    ),
    _model(
        "spectral",
        "every matrix changes its input by a size that does not depend on the width",
        "std = gain·√(1 / fan_in)·min(1, √(fan_out / fan_in)): the largest singular value is about "
        "√(fan_out / fan_in)",
        "As mup, with one rule for all layers.",
        "Yang, Simon, Bernstein (2023), A Spectral Condition for Feature Learning, section 4: "
        "arXiv:2310.17813",
        _spectral,
        _PLAIN,
    ),
)

_SPECIAL = (
    _model(
        "recurrent",
        "orthogonal matrices for each gate, a forget gate that starts open",
        "each gate's hidden-to-hidden block orthogonal, std = gain / √hidden; input blocks Xavier; "
        "biases 0, but b_f = forget_bias once for each LSTM unit",
        "RNN, LSTM and GRU layers. A stack of gates that is orthogonal as one matrix is not so for "
        "each gate.",
        "Saxe, McClelland, Ganguli (2014): arXiv:1312.6120; Jozefowicz, Zaremba, Sutskever (2015), "
        "section 2.2: https://proceedings.mlr.press/v37/jozefowicz15.html",
        _recurrent,
        _RECURRENT,
        arguments=(number("forget_bias", 1.0, "a finite number"),),
        needs="a model with recurrent layers",
    ),
    _model(
        "lora",
        "adapters that start by changing nothing",
        "A ~ U(−1/√fan_in, 1/√fan_in), std = gain·√(1 / (3·fan_in)); B = 0",
        "Low-rank adapters B·A beside frozen weights: one zero factor is a delay of one step, two "
        "would never move.",
        "Hu et al. (2021), LoRA, section 4.1 (there A is normal; uniform in the authors' code): "
        "arXiv:2106.09685",
        _lora,
        _LORA,
        "fan_in",
        (among("part", "A", ("A", "B")),),
        "a model with low-rank adapters",
    ),
    _model(
        "lsuv",
        "orthogonal weights, each layer scaled until its output has unit variance on the batch",
        "W orthogonal, then W ← W / √Var(W x), layer after layer",
        "Networks whose layers are of many kinds, with a representative batch.",
        "Mishkin, Matas (2016), All You Need is a Good Init, algorithm 1: arXiv:1511.06422",
        _measured("lsuv"),
        _PLAIN,
    ),
    _model(
        "within_layer",
        "every channel of every layer normalized on the batch",
        "w_c ← w_c / √Var(w_c x), b_c = −E[w_c x] / √Var(w_c x) for each channel c; then the "
        "layers are scaled against each other so that all learn at the same rate",
        "Networks with a representative batch, above all when a part of them was trained before.",
        "Krähenbühl, Doersch, Donahue, Darrell (2016), Data-dependent Initializations of "
        "Convolutional Neural Networks, algorithms 1 and 2: arXiv:1511.06856",
        _measured("within_layer"),
        _PLAIN,
    ),
    _model(
        "auto",
        "for each parameter what its place in the model asks for",
        "decided from the traced call: fan, activation before and after, residual branch, norm, "
        "role; the plan gives the reason for each parameter",
        "When in doubt.",
        "the reasons in the plan name their sources",
        _measured("auto"),
        _PLAIN,
    ),
)

MODELS = (*_RESIDUALS, *_WIDTHS, *_SPECIAL)
