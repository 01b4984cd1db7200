"""The catalogue: every scheme has, through real layers, the moments that its formula says."""

from __future__ import annotations

import ast
import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fanin
import fanin.catalogue
from fanin.catalogue import ALIASES, SCHEMES, Scheme, document, find
from fanin.errors import ArgumentError
from fanin.fill import fill_

TENSOR = [s for s in SCHEMES.values() if s.scope == "tensor"]
MODEL = [s for s in SCHEMES.values() if s.scope == "model"]
BIASES = ("forget_gate_bias", "chrono_bias", "prior_bias", "mirrored_bias", "focal_bias")
THREE = ("normal", "uniform", "trunc_normal")


def names(schemes: list[Scheme]) -> dict[str, object]:
    return {"argvalues": schemes, "ids": [s.name for s in schemes]}


def test_the_catalogue_holds_exactly_what_is_promised():
    plain = "zeros ones constant identity dirac sparse normal uniform trunc_normal critical siren"
    scaled = "variance_scaling " + " ".join(
        f"{stem}_{form}" for stem in ("lecun", "xavier", "xavier_in", "he") for form in THREE
    )
    structured = "orthogonal delta_orthogonal looks_linear hadamard zero_hadamard irnn icnr mimetic"
    structured += (
        " bilinear_upsampling forget_gate_bias chrono_bias prior_bias mirrored_bias focal_bias"
    )
    models = "fixup skipinit rezero residual_scaling deepnorm t_fixup small_init mup spectral"
    models += " depthwise_trunc_normal recurrent lora lsuv within_layer auto"
    assert {s.name for s in TENSOR} == set(f"{plain} {scaled} {structured}".split())
    assert {s.name for s in MODEL} == set(models.split())
    assert all(s.form == "model" for s in MODEL)
    with pytest.raises(TypeError):
        SCHEMES["mine"] = SCHEMES["zeros"]  # type: ignore[index]


# ── through real layers ──────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Layer:
    """A layer with a weight of `shape` that `run` applies to an input of `x` (or to indices).

    `inputs` are what one output sums over, in the mean: the fan_in of the truth table.
    """

    name: str
    shape: tuple[int, ...]
    layout: str
    inputs: float
    run: Callable[[Tensor, Tensor], Tensor]
    x: tuple[int, ...]
    blocks: int = 1
    groups: int = 1

    def __str__(self) -> str:
        return self.name

    @property
    def kernel(self) -> tuple[int, ...]:
        return tuple(n for n, c in zip(self.shape, self.layout, strict=True) if c == "k")

    @property
    def matrix(self) -> tuple[int, int]:
        """(inputs, outputs) of one matrix, taps not counted."""
        sizes = dict(zip(self.layout, self.shape, strict=True))
        inputs, outputs = sizes.get("i", sizes.get("v", 1)), sizes["o"] // self.blocks
        if self.layout.startswith("i"):
            return inputs // self.groups, outputs
        return inputs, outputs // self.groups

    @property
    def fans(self) -> tuple[float, float]:
        return self.inputs, self.matrix[1] * math.prod(self.kernel)


def one_hot(w: Tensor, x: Tensor) -> Tensor:
    return F.embedding(torch.arange(len(w)), w)


LAYERS = [
    Layer("linear", (256, 128), "oi", 128, lambda w, x: F.linear(x, w), (200, 128)),
    Layer("square", (192, 192), "oi", 192, lambda w, x: F.linear(x, w), (200, 192)),
    Layer("x@W", (128, 256), "io", 128, lambda w, x: x @ w, (200, 128)),
    Layer("conv1d", (64, 32, 4), "oik", 128, lambda w, x: F.conv1d(x, w), (14, 32, 30)),
    Layer("conv2d", (48, 32, 3, 3), "oikk", 288, lambda w, x: F.conv2d(x, w), (6, 32, 9, 9)),
    Layer("conv3d", (32, 16, 2, 2, 2), "oikkk", 128, lambda w, x: F.conv3d(x, w), (4, 16, 6, 6, 6)),
    Layer(
        "grouped",
        (128, 16, 3, 3),
        "oikk",
        144,
        lambda w, x: F.conv2d(x, w, groups=4),
        (6, 64, 8, 8),
        groups=4,
    ),
    Layer(
        "depthwise",
        (128, 1, 5, 5),
        "oikk",
        25,
        lambda w, x: F.conv2d(x, w, groups=128),
        (6, 128, 9, 9),
        groups=128,
    ),
    Layer(
        "transposed",
        (48, 48, 4, 4),
        "iokk",
        48 * 4,
        lambda w, x: F.conv_transpose2d(x, w, stride=2)[..., 3:-3, 3:-3],
        (6, 48, 10, 10),
    ),
    Layer(
        "transposed-grouped",
        (64, 16, 4, 4),
        "iokk",
        16 * 4,
        lambda w, x: F.conv_transpose2d(x, w, stride=2, groups=4)[..., 3:-3, 3:-3],
        (6, 64, 10, 10),
        groups=4,
    ),
    Layer("embedding", (300, 96), "vo", 1, one_hot, (1,)),
    Layer(
        "experts",
        (4, 96, 96),
        "boi",
        96,
        lambda w, x: torch.einsum("eoi,eni->eno", w, x),
        (4, 100, 96),
    ),
    Layer("packed", (3 * 96, 96), "oi", 96, lambda w, x: F.linear(x, w), (200, 96), blocks=3),
]


@cache
def unit_input(shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(math.prod(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def fits(scheme: str, layer: Layer) -> bool:
    """Whether the scheme has a meaning for the layer: what its `needs` says."""
    inputs, outputs = layer.matrix
    taps = math.prod(layer.kernel)
    if scheme in ("dirac", "delta_orthogonal", "icnr", "bilinear_upsampling") and not layer.kernel:
        return False
    if scheme in ("identity", "irnn", "mimetic") and layer.kernel:
        return False
    if scheme in ("irnn", "bilinear_upsampling"):
        return inputs == outputs
    if scheme == "mimetic":
        return outputs <= inputs
    if scheme == "looks_linear":
        return min(inputs, outputs) >= 2
    if scheme == "icnr":
        return outputs % 2 ** len(layer.kernel) == 0
    if scheme == "hadamard":
        n = max(outputs, inputs * taps)
        return any(n == small * 2**k for small in (1, 12, 20) for k in range(20))
    return scheme not in BIASES[:4]


def predicted(scheme: Scheme, layer: Layer) -> float:
    if scheme.form == "matrix" and scheme.fan is None and scheme.name not in BIASES:
        inputs, outputs = layer.matrix
        return scheme.std((inputs, outputs, *layer.kernel))
    return scheme.std(layer.fans if scheme.fan else None)


def random_entries(scheme: str, layer: Layer) -> int:
    """Independent numbers in the weight: they decide how well its std can be known."""
    count = math.prod(layer.shape)
    shares = {"sparse": 0.1, "icnr": 1 / 2 ** len(layer.kernel)}
    return int(count * shares.get(scheme, 1.0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("scheme", **names(TENSOR))
def test_weights_and_outputs_have_the_predicted_moments(
    scheme: Scheme, layer: Layer, dtype: torch.dtype
):
    weight = torch.full(layer.shape, 7.0, dtype=dtype)
    options = {"layout": layer.layout, "blocks": layer.blocks, "groups": layer.groups}
    if not fits(scheme.name, layer):
        with pytest.raises(ArgumentError):
            fill_(weight, scheme.name, fan=layer.fans, name=str(layer), **options)
        assert (weight == 7).all()
        return
    fill_(weight, scheme.name, fan=layer.fans, name=str(layer), **options)
    std = predicted(scheme, layer)
    wide = weight.double()
    rounding = {torch.float64: 1e-6, torch.float32: 1e-6, torch.bfloat16: 4e-3}[dtype]
    # five sigma of the mean square of that many normal numbers
    spread = 5 * math.sqrt(2 / random_entries(scheme.name, layer))
    exact = scheme.form in ("constant", "matrix") and scheme.name not in ("sparse", "icnr")
    spread = 0.01 if scheme.name == "mimetic" else 0.0 if exact else spread
    square = float(wide.square().mean())
    assert square == pytest.approx(std**2, rel=spread + rounding, abs=1e-12)
    if scheme.form == "constant" or scheme.name == "focal_bias":
        return
    outputs = layer.run(wide, unit_input(layer.x))
    # the input is a sample too: five sigma of its mean square over what a weight looks at
    variance = float(outputs.square().mean())
    assert variance == pytest.approx(layer.inputs * std**2, rel=spread + rounding + 0.08)


@pytest.mark.parametrize(
    "scheme",
    [s for s in TENSOR if any(a.name == "centred" for a in s.arguments)],
    ids=lambda s: s.name,
)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_centred_weights_do_not_see_the_mean_of_their_input(scheme: Scheme, layer: Layer):
    weight = torch.empty(layer.shape, dtype=torch.float64)
    options = {"layout": layer.layout, "blocks": layer.blocks, "groups": layer.groups}
    if layer.matrix[0] == 1 or (scheme.name == "delta_orthogonal" and not layer.kernel):
        with pytest.raises(ArgumentError):
            fill_(weight, scheme.name, centred=True, **options)
        return
    fan = layer.fans if scheme.fan else None
    fill_(weight, scheme.name, centred=True, fan=fan, name="w", **options)
    if layer.layout == "iokk":
        weight = weight.unflatten(0, (layer.groups, -1))
        sums = weight.sum(1)
    else:
        sums = weight.sum(layer.layout.replace("v", "i").index("i"))
    assert sums.abs().max() < 1e-12
    inputs, outputs = layer.matrix
    sizes = (inputs, outputs, *layer.kernel)
    exact = scheme.form == "matrix"
    std = scheme.std(sizes if exact else fan, centred=True)
    spread = 1e-6 if exact else 5 * math.sqrt(2 / weight.numel())
    assert float(weight.square().mean()) == pytest.approx(std**2, rel=spread)


# ── closed forms ─────────────────────────────────────────────────────────────────────────────

PUBLISHED = [
    # scheme, fan, arguments, std: computed by hand from the formula in the paper
    ("he_normal", 2, {}, 1.0),
    ("he_normal", (100, 50), {"mode": "fan_out"}, 0.2),
    ("he_uniform", 128, {"negative_slope": math.sqrt(5)}, math.sqrt(1 / (3 * 128))),  # torch.Linear
    ("xavier_uniform", (300, 300), {}, math.sqrt(6 / 600) / math.sqrt(3)),
    ("xavier_in_normal", 10, {}, math.sqrt(1 / 10)),
    ("lecun_normal", 100, {}, 0.1),
    ("variance_scaling", (100, 25), {"scale": 2.0, "mode": "fan_geo"}, 0.2),
    ("variance_scaling", (100, 60), {"mode": "fan_avg", "distribution": "uniform"}, 80**-0.5),
    ("trunc_normal", None, {}, 1.0),
    ("critical", 100, {"activation": "relu"}, math.sqrt(2 / 100)),
    ("critical", 1, {"activation": "tanh", "bias_std": math.sqrt(0.05)}, math.sqrt(1.76095)),
    ("siren", 96, {}, math.sqrt(6 / 96) / 30 / math.sqrt(3)),
    ("siren", 3, {"first": True}, 1 / 3 / math.sqrt(3)),
    ("orthogonal", (100, 25), {}, 0.1),
    ("orthogonal", (25, 100), {"scale": "variance"}, 0.2),
    ("orthogonal", 16, {"scale": "variance"}, 0.25),
    ("delta_orthogonal", (25, 25, 2, 2), {}, 0.1),
    ("looks_linear", (200, 200), {}, 0.1),
    ("zero_hadamard", (3, 100), {}, 128**-0.5),
    ("forget_gate_bias", None, {}, 0.5),
    ("focal_bias", None, {"prior": 0.01}, math.log(99)),
    ("prior_bias", None, {"priors": [1.0] * 10}, math.log(10)),
    ("fixup", 2, {"branches": 16, "layers": 3}, 0.5),
    ("skipinit", None, {}, 0.0),
    ("rezero", None, {}, 0.0),
    ("residual_scaling", None, {"layers": 50}, 0.002),
    ("deepnorm", (1, 1), {"layers": 2}, 0.5),
    (
        "deepnorm",
        (1, 1),
        {"layers": 18, "part": "encoder", "decoder_layers": 6},
        0.87 * (18**4 * 6) ** (-1 / 16),
    ),
    ("deepnorm", (1, 1), {"layers": 12, "part": "decoder"}, 144**-0.25),
    ("t_fixup", (1, 1), {"layers": 16}, 0.335),
    ("t_fixup", (1, 1), {"layers": 9, "part": "decoder"}, 1 / 3),
    ("small_init", 40, {}, 0.1),
    ("depthwise_trunc_normal", 50, {"layer": 0}, 0.1),
    ("depthwise_trunc_normal", 50, {"layer": 3}, 0.05),
    ("mup", 100, {}, 0.1),
    ("mup", 100, {"part": "output"}, 0.01),
    ("spectral", (400, 100), {}, 0.025),
    ("spectral", (100, 400), {}, 0.1),
    ("recurrent", (100, 25), {}, 0.1),
    ("lora", 300, {}, 1 / 30),
    ("lora", 300, {"part": "B"}, 0.0),
]


@pytest.mark.parametrize(("name", "fan", "arguments", "std"), PUBLISHED)
def test_the_std_is_that_of_the_paper(name: str, fan, arguments, std: float):
    scheme = find(name)
    assert scheme.std(fan, **arguments) == pytest.approx(std, rel=1e-5)
    assert scheme.std(fan, gain=3.0, **arguments) == pytest.approx(3 * std, rel=1e-5)


def test_every_model_scheme_has_a_std_or_says_that_it_is_measured():
    without = {s.name for s in MODEL} - {row[0] for row in PUBLISHED}
    assert without == {"lsuv", "within_layer", "auto"}
    for name in without:
        with pytest.raises(ArgumentError, match="no closed form"):
            find(name).std(10)


def test_a_truncated_normal_is_corrected_for_what_the_cut_removes():
    weight = fill_(torch.empty(400_000), "trunc_normal", gain=0.02, name="w")
    assert float(weight.std()) == pytest.approx(0.02, rel=5e-3)
    assert float(weight.abs().max()) == pytest.approx(2 * 0.02 / 0.87962566, rel=1e-3)


def test_he_keeps_a_signal_that_forward_xavier_halves_at_every_relu():
    ends = {}
    for scheme in ("he_normal", "xavier_in_normal"):
        x = unit_input((64, 512))
        for depth in range(30):
            weight = torch.empty(512, 512, dtype=torch.float64)
            x = torch.relu(x @ fill_(weight, scheme, name=f"layer{depth}").T)
        ends[scheme] = float(x.square().mean().sqrt())
    assert ends["xavier_in_normal"] / ends["he_normal"] == pytest.approx(2**-15, rel=1e-4)
    assert 0.3 < ends["he_normal"] < 2


# ── structure ────────────────────────────────────────────────────────────────────────────────


def values(matrix: Tensor) -> Tensor:
    return torch.linalg.svdvals(matrix.double())


@pytest.mark.parametrize("scheme", ["orthogonal", "hadamard"])
@pytest.mark.parametrize("shape", [(32, 32), (16, 64), (80, 20)])
def test_all_singular_values_are_the_gain(scheme: str, shape: tuple[int, int]):
    weight = fill_(torch.empty(shape), scheme, gain=1.5)
    torch.testing.assert_close(values(weight), torch.full((min(shape),), 1.5).double())


def test_matrices_are_drawn_for_each_block_group_and_expert_alone():
    packed = fill_(torch.empty(96, 32), "orthogonal", blocks=3)
    experts = fill_(torch.empty(3, 32, 32), "orthogonal", layout="boi")
    grouped = fill_(torch.empty(32, 8, 2), "orthogonal", layout="oik", groups=4)
    turned = fill_(torch.empty(32, 8, 2), "orthogonal", layout="iok", groups=4)
    parts = [*packed.chunk(3), *experts, *(g.flatten(1) for g in grouped.chunk(4))]
    parts += [g.transpose(0, 1).flatten(1) for g in turned.chunk(4)]
    for part in parts:
        torch.testing.assert_close(values(part), torch.ones(min(part.shape)).double())
    for first, second in itertools.combinations(packed.chunk(3), 2):
        assert not torch.allclose(first, second)
    # the same matrices, however they are laid out
    torch.testing.assert_close(packed.view(3, 32, 32), experts)
    torch.testing.assert_close(
        fill_(torch.empty(32, 96), "orthogonal", layout="io", blocks=3).T, packed
    )


def test_variance_scale_keeps_the_variance_of_each_output():
    x = unit_input((4000, 32))
    for shape in ((128, 32), (32, 32), (16, 32)):
        weight = torch.empty(shape, dtype=torch.float64)
        fill_(weight, "orthogonal", scale="variance")
        assert float((x @ weight.T).square().mean()) == pytest.approx(1, rel=0.02)
    # a transposed convolution of stride 2: an output sums over 16 inputs of 4 taps
    weight = fill_(torch.empty(16, 16, 4, 4), "orthogonal", layout="iokk", scale="variance", fan=64)
    assert float(weight.square().mean()) == pytest.approx(1 / 64)


@pytest.mark.parametrize(("rows", "columns"), [(32, 32), (16, 32), (31, 32), (64, 32)])
def test_centred_orthogonal_matrices_are_orthonormal_on_what_sums_to_zero(rows: int, columns: int):
    weight = torch.empty(rows, columns, dtype=torch.float64)
    fill_(weight, "orthogonal", centred=True)
    found = values(weight)
    ones = min(rows, columns - 1)
    torch.testing.assert_close(found[:ones], torch.ones(ones).double())
    assert found[ones:].abs().max() < 1e-12 if len(found) > ones else True
    if rows < columns:
        torch.testing.assert_close(weight @ weight.T, torch.eye(rows).double())
    fill_(weight, "orthogonal", centred=True, scale="variance")
    assert float(weight.square().mean()) == pytest.approx(1 / columns)


def test_delta_orthogonal_keeps_norms_through_a_hundred_layers():
    x = y = unit_input((2, 16, 6, 6))
    for depth in range(100):
        kernel = torch.empty(16, 16, 3, 3, dtype=torch.float64)
        y = F.conv2d(y, fill_(kernel, "delta_orthogonal", name=f"layer{depth}"), padding=1)
    torch.testing.assert_close(y.norm(), x.norm())


def test_centred_delta_orthogonal_keeps_all_but_the_mean():
    x = unit_input((2, 16, 6, 6))
    kernel = torch.empty(16, 16, 3, 3, dtype=torch.float64)
    fill_(kernel, "delta_orthogonal", centred=True)
    y = F.conv2d(x, kernel, padding=1)
    torch.testing.assert_close(y.norm(), (x - x.mean(1, keepdim=True)).norm())


@pytest.mark.parametrize("width", [32, 33])
def test_deep_relu_networks_that_look_linear_have_an_orthogonal_jacobian(width: int):
    def weight(depth: int, shape: tuple[int, int], **ends: bool) -> Tensor:
        empty = torch.empty(shape, dtype=torch.float64)
        return fill_(empty, "looks_linear", name=f"layer{depth}", **ends)

    def network(x: Tensor) -> Tensor:
        x = torch.relu(weight(0, (width, 16), first=True) @ x)
        for depth in range(1, 50):
            x = torch.relu(weight(depth, (width, width)) @ x)
        return weight(50, (16, width), last=True) @ x

    jacobian = torch.autograd.functional.jacobian(network, unit_input((16,)))
    torch.testing.assert_close(values(jacobian), torch.ones(16).double())


@pytest.mark.parametrize("ends", [{}, {"first": True}, {"last": True}], ids=str)
@pytest.mark.parametrize("shape", [(8, 2, 3, 3), (9, 5, 3, 3), (32, 3, 2)], ids=str)
def test_a_kernel_that_looks_linear_over_its_patch_is_a_matrix_of_all_its_taps(
    shape: tuple[int, ...], ends: dict[str, bool]
):
    given = {**ends, "patch": True}
    empty = torch.empty(shape, dtype=torch.float64)
    kernel = fill_(empty, "looks_linear", layout="oikk"[: len(shape)], **given)
    rows = shape[0] if ends.get("last") else shape[0] // 2
    columns = shape[1] if ends.get("first") else shape[1] // 2
    block = kernel[:rows, :columns].flatten(1)
    torch.testing.assert_close(values(block), torch.ones(min(block.shape)).double())
    if not ends.get("last"):
        assert torch.equal(kernel[rows : 2 * rows], -kernel[:rows])
    if not ends.get("first"):
        assert torch.equal(kernel[:, columns : 2 * columns], -kernel[:, :columns])
    std = find("looks_linear").std((shape[1], shape[0], *shape[2:]), **given)
    assert float(kernel.square().mean().sqrt()) == pytest.approx(std, rel=0.05)


def test_zero_hadamard_is_the_identity_or_hadamard():
    assert torch.equal(fill_(torch.empty(3, 5), "zero_hadamard"), torch.eye(3, 5))
    grown = fill_(torch.empty(4, 2, dtype=torch.float64), "zero_hadamard")
    assert grown.tolist() == [[0.5, 0.5], [0.5, -0.5], [0.5, 0.5], [0.5, -0.5]]
    kernel = fill_(torch.empty(5, 5, 3, 3), "zero_hadamard", layout="oikk")
    assert torch.equal(kernel[..., 1, 1], torch.eye(5))
    assert kernel.abs().sum() == 5


def test_dirac_and_identity_hand_on_what_they_get():
    x = unit_input((2, 12, 7, 7))
    kernel = fill_(torch.empty(12, 3, 3, 3, dtype=torch.float64), "dirac", groups=4)
    assert torch.equal(F.conv2d(x, kernel, padding=1, groups=4), x)
    turned = fill_(torch.empty(12, 12, 5, dtype=torch.float64), "dirac", layout="iok")
    flat = x.flatten(2)
    assert torch.equal(F.conv_transpose1d(flat, turned, padding=2), flat)
    assert torch.equal(fill_(torch.empty(4, 4), "irnn", gain=-0.5), -0.5 * torch.eye(4))


def test_sparse_units_have_their_number_of_inputs_each_at_random():
    weight = fill_(torch.empty(200, 30), "sparse", sparsity=0.5, gain=0.1, name="w")
    assert ((weight != 0).sum(1) == 15).all()
    used = (weight != 0).double().mean(0)
    assert 0.3 < float(used.min()) < float(used.max()) < 0.7
    assert float(weight[weight != 0].std()) == pytest.approx(0.1, rel=0.05)


def test_pixel_shuffle_after_icnr_enlarges_without_a_checkerboard():
    x = unit_input((1, 6, 5, 5))
    kernel = fill_(torch.empty(4 * 9, 6, 3, 3, dtype=torch.float64), "icnr", scale=3)
    image = F.pixel_shuffle(F.conv2d(x, kernel, padding=1), 3)
    cells = image.unfold(2, 3, 3).unfold(3, 3, 3).flatten(4)
    assert torch.equal(cells, cells[..., :1].expand_as(cells))
    assert len(torch.unique(kernel)) == 4 * 6 * 9


@pytest.mark.parametrize(("taps", "stride"), [(4, 2), (3, 2), (8, 4)])
def test_bilinear_upsampling_interpolates_a_ramp(taps: int, stride: int):
    kernel = fill_(torch.empty(2, 2, taps, taps, dtype=torch.float64), "bilinear_upsampling")
    ramp = torch.arange(12.0).double().expand(1, 2, 12, 12)
    steps = F.conv_transpose2d(ramp, kernel, stride=stride)[
        ..., 2 * taps : -2 * taps, 2 * taps : -2 * taps
    ].diff()
    torch.testing.assert_close(steps, torch.full_like(steps, 1 / stride))


@pytest.mark.parametrize("heads", [1, 4])
def test_mimetic_pairs_multiply_to_a_diagonal(heads: int):
    def drawn(part: str, partner: str, shape: tuple[int, int] = (64, 64), **options) -> Tensor:
        empty = torch.empty(shape, dtype=torch.float64)
        name = f"{part}.weight"
        return fill_(
            empty, "mimetic", part=part, name=name, partner=partner, heads=heads, **options
        )

    q, k = drawn("q", "q.weight"), drawn("k", "q.weight")
    v, o = drawn("v", "v.weight"), drawn("o", "v.weight")
    width, rank = 64, 64 // heads
    for head in range(heads):
        rows = slice(head * rank, (head + 1) * rank)
        product = q[rows].T @ k[rows]
        assert torch.linalg.matrix_rank(product) == rank
        assert product.diagonal().mean() > 3 * product.diagonal(1).abs().mean()
    noise = (o @ v + 0.4 * torch.eye(width)) * math.sqrt(width) / 0.4
    assert float(noise.square().mean()) == pytest.approx(1, rel=5 * math.sqrt(2 / width**2))
    assert float(noise.diagonal().mean()) == pytest.approx(0, abs=5 / math.sqrt(width))
    # packed q, k, v are the same as apart, where the partner is the packed parameter
    packed = drawn("qkv", "in_proj", (192, 64), blocks=3)
    apart = [drawn(part, "in_proj") for part in "qkv"]
    torch.testing.assert_close(packed, torch.cat(apart))
    assert torch.equal(drawn("q", ""), drawn("q", "q.weight"))


def test_sines_after_siren_get_nearly_standard_normals_at_any_depth():
    variance = 1.0
    for _ in range(100):  # 2·E[sin²] of a normal variable: the fixed point is 0.797
        variance = 1 - math.exp(-2 * variance)
    x = 2 * torch.rand(2000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1
    weight = fill_(torch.empty(256, 2, dtype=torch.float64), "siren", first=True, name="first")
    x = torch.sin(30 * x @ weight.T)
    for depth in range(10):
        weight = fill_(torch.empty(256, 256, dtype=torch.float64), "siren", name=f"layer{depth}")
        before = 30 * x @ weight.T
        x = torch.sin(before)
        if depth > 2:
            assert float(before.var()) == pytest.approx(variance, rel=0.05)


def test_biases_mean_what_they_say():
    hidden = 3000
    bias = fill_(torch.empty(4 * hidden, dtype=torch.float64), "chrono_bias", t_max=100, name="b")
    i, f, g, o = bias.chunk(4)
    assert torch.equal(i, -f)
    assert (g == 0).all()
    assert (o == 0).all()
    share = (torch.exp(f) - 1) / 98  # uniform on (0, 1)
    assert 0 < share.min() < share.max() < 1
    assert float(share.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(share.var()) == pytest.approx(1 / 12, rel=0.1)
    predicted_square = find("chrono_bias").std(t_max=100) ** 2
    assert float(bias.square().mean()) == pytest.approx(predicted_square, rel=0.05)
    forget = fill_(torch.empty(8), "forget_gate_bias", value=2.0, gain=0.5)
    assert forget.tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    priors = fill_(torch.empty(3), "prior_bias", priors=(0.5, 0.25, 0.25))
    torch.testing.assert_close(priors.softmax(0), torch.tensor([0.5, 0.25, 0.25]))
    offsets = fill_(torch.empty(4001), "mirrored_bias", gain=0.5, name="b")
    assert torch.equal(offsets[:2000], -offsets[2000:4000])
    assert offsets[4000] == 0
    assert float(offsets.std()) == pytest.approx(0.5, rel=0.05)
    focal = fill_(torch.empty(3, 2), "focal_bias")
    torch.testing.assert_close(focal.sigmoid(), torch.full((3, 2), 0.01))


def test_an_lstm_with_recurrent_blocks_is_orthogonal_in_each_gate():
    lstm = nn.LSTM(8, 16)
    fill_(lstm.weight_hh_l0, "orthogonal", blocks=4)
    for gate in lstm.weight_hh_l0.detach().chunk(4):
        torch.testing.assert_close(gate @ gate.T, torch.eye(16), atol=1e-6, rtol=0)


# ── names and documents ──────────────────────────────────────────────────────────────────────

OTHERS = {
    "he_normal": "kaiming_normal_ kaiming_normal HeNormal he_normal_init msra",
    "he_uniform": "kaiming_uniform_ HeUniform",
    "xavier_normal": "xavier_normal_ GlorotNormal glorot_normal",
    "xavier_uniform": "xavier_uniform_ GlorotUniform glorot_uniform",
    "lecun_normal": "LecunNormal LeCunNormal lecun_normal_",
    "trunc_normal": "trunc_normal_ TruncatedNormal truncated_normal trunc_normal_tf_",
    "normal": "normal_ RandomNormal random_normal",
    "uniform": "uniform_ RandomUniform",
    "zeros": "zeros_ Zeros zeros_init zeros_initializer",
    "ones": "ones_ Ones ones_init",
    "constant": "constant_ Constant",
    "identity": "eye_ Identity identity eye",
    "dirac": "dirac_",
    "sparse": "sparse_",
    "orthogonal": "orthogonal_ Orthogonal OrthogonalInitializer orthogonal_initializer",
    "delta_orthogonal": "delta_orthogonal delta-orthogonal",
    "variance_scaling": "VarianceScaling variance_scaling_",
    "zero_hadamard": "ZerO",
    "residual_scaling": "gpt2",
    "small_init": "small_init",
    "within_layer": "krahenbuhl",
    "t_fixup": "TFixup T-Fixup",
}


@pytest.mark.parametrize(("name", "others"), OTHERS.items())
def test_schemes_are_found_by_the_names_of_other_libraries(name: str, others: str):
    for other in others.split():
        assert find(other).name == name


def test_aliases_lead_to_schemes_and_hide_none():
    assert set(ALIASES.values()) <= set(SCHEMES)
    assert not set(ALIASES) & set(SCHEMES)


@pytest.mark.parametrize(
    ("name", "near"),
    [("kaimng_normal", "kaiming_normal"), ("xavier", "xavier_normal"), ("othogonal", "orthogonal")],
)
def test_an_unknown_scheme_is_answered_with_the_nearest_names(name: str, near: str):
    with pytest.raises(ArgumentError, match=near):
        find(name)


@pytest.mark.parametrize("name", ["", "???", "a\nb", None, 3, b"he_normal", "x" * 10_000])
def test_a_name_of_nothing_is_one_short_line(name):
    with pytest.raises(ArgumentError) as caught:
        find(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200 or isinstance(name, bytes)


SECTIONS = ["Formula", "Arguments", "When to use it", "Example", "Source"]


def test_the_catalogue_imports_no_torch():
    for path in Path(fanin.catalogue.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            module = getattr(node, "module", None) or ""
            modules = [module, *(a.name for a in getattr(node, "names", []))]
            assert not any(str(m).split(".")[0] == "torch" for m in modules), path


@pytest.mark.parametrize("scheme", **names([*SCHEMES.values()]))
def test_a_document_has_all_sections_and_reads_well_in_a_terminal(scheme: Scheme):
    text = document(scheme.name)
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    assert parts[0].startswith(f"# {scheme.name}\n\n")
    assert parts[1::2] == SECTIONS
    assert all(body.strip() for body in parts[2::2])
    for argument in scheme.arguments:
        assert f"- `{argument.name}` ({argument.default!r}): " in text
    links = re.compile(r"\[\S+\]\(https://\S+\)")
    for line in text.splitlines():
        assert len(links.sub("", line)) <= 100
        assert line.isprintable()


@pytest.mark.parametrize("scheme", **names([*SCHEMES.values()]))
def test_the_example_of_a_document_runs(scheme: Scheme, monkeypatch: pytest.MonkeyPatch):
    if not hasattr(fanin, "fill_"):
        monkeypatch.setattr(fanin, "fill_", fill_, raising=False)
    if scheme.scope == "model" and not hasattr(fanin, "init_"):
        pytest.skip("fanin.init_ is not there yet")
    code = re.search(r"```python\n(.*?)```", document(scheme.name), re.DOTALL)
    assert code is not None
    assert "fanin.fill_(" in code[1] or "fanin.init_(" in code[1]
    exec(compile(code[1], f"{scheme.name}.md", "exec"), {"__name__": "example"})


@pytest.mark.parametrize("scheme", **names([*SCHEMES.values()]))
def test_defaults_are_allowed_and_repeat_themselves(scheme: Scheme):
    needed = {"priors": (0.5, 0.5)}  # the one argument without a default
    given = {a.name: needed.get(a.name, a.default) for a in scheme.arguments}
    assert dict(scheme.complete(given)) == given
    for argument in scheme.arguments:
        with pytest.raises(ArgumentError, match=argument.name):
            scheme.complete({argument.name: math.nan})
        with pytest.raises(ArgumentError, match=argument.name):
            scheme.complete({argument.name: [object()]})


def test_a_scheme_in_the_place_of_its_name_is_told_its_name():
    with pytest.raises(ArgumentError, match=r"its name is needed, here 'he_normal'$"):
        find(SCHEMES["he_normal"])  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"^std: normal has .* gain multiplies its std$"):
        fill_(torch.empty(2, 2), "normal", std=0.02)
