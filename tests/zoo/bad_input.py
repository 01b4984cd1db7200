"""Bad input, each with the error it must end in; and odd input, which simply works."""

from __future__ import annotations

import numpy
import torch
import torch.nn.functional as F
from torch import nn

from fanin.errors import ArgumentError, BatchError, FaninError, ForwardError, LossError, ModelError
from zoo import Zoo, blocks
from zoo.blocks import classify, mlp, zero_

__all__ = ["BAD", "ODD", "Calls", "interrupted"]

BAD = Zoo()
ODD = Zoo(ok=True)


def net() -> nn.Sequential:
    """Two layers and a norm with buffers, for everything in which the model is not the point."""
    return nn.Sequential(nn.Linear(10, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 3))


def data() -> torch.Tensor:
    return torch.randn(16, 10)


class Raises(nn.Module):
    """Passes its input on, until the moment it is told to raise."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        raise self.error


# ── what the model does ──────────────────────────────────────────────────────────────────────


@BAD(raises=ForwardError, words=("no luck today",))
def forward_raises():
    return nn.Sequential(net(), Raises(RuntimeError("no luck today"))), data()


@BAD(raises=ForwardError, words=("KeyError", "spam"))
def forward_raises_a_key_error():
    return nn.Sequential(net(), Raises(KeyError("spam"))), data()


@BAD(raises=ForwardError, words=("StopIteration",))
def forward_raises_stop_iteration():
    return nn.Sequential(net(), Raises(StopIteration())), data()


@BAD(raises=ForwardError)
def forward_raises_with_a_long_message_of_many_lines():
    return nn.Sequential(net(), Raises(ValueError("first\nsecond\n" + "x" * 5000))), data()


@BAD(raises=ForwardError)
def forward_that_never_ends():
    class Endless(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(10, 10)

        def forward(self, x):
            return self(self.a(x))

    return Endless(), data()


@BAD(raises=ForwardError, words=("forward hook",))
def forward_hook_raises():
    def hook(module, args, out):
        raise RuntimeError("from the forward hook")

    model = net()
    model[2].register_forward_hook(hook)
    return model, data()


@BAD(raises=ForwardError, words=("pre hook",))
def forward_pre_hook_raises():
    def hook(module, args):
        raise RuntimeError("from the pre hook")

    model = net()
    model[3].register_forward_pre_hook(hook)
    return model, data()


@BAD(raises=ForwardError, words=("backward hook",))
def backward_hook_raises():
    def hook(module, grad_in, grad_out):
        raise RuntimeError("from the backward hook")

    model = net()
    model[0].register_full_backward_hook(hook)
    return model, data(), classify(16, 3)


@BAD(raises=ForwardError, words=("tensor hook",))
def tensor_hook_raises():
    def hook(grad):
        raise RuntimeError("from the tensor hook")

    model = net()
    model[0].weight.register_hook(hook)
    return model, data(), classify(16, 3)


@BAD(raises=ForwardError, words=("in backward",))
def backward_raises():
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise ValueError("in backward")

    return nn.Sequential(net(), blocks.Lambda(Broken.apply)), data(), classify(16, 3)


@BAD(raises=ForwardError)
def backward_of_an_overwritten_tensor():
    """An in-place write destroys what the backward pass needs."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(10, 24), nn.Linear(24, 3)

        def forward(self, x):
            y = torch.sigmoid(self.a(x))
            out = self.b(y)
            y.mul_(2)
            return out

    return Net(), data(), classify(16, 3)


@BAD(raises=(ModelError, LossError), words=(("float",),))
def output_without_a_floating_tensor():
    return nn.Sequential(net(), blocks.Lambda(lambda x: x.argmax(-1))), data()


@BAD(raises=(ModelError, LossError))
def output_of_none():
    return nn.Sequential(net(), blocks.Lambda(lambda x: None)), data()


@BAD(raises=(ModelError, LossError))
def output_of_text():
    return nn.Sequential(net(), blocks.Lambda(lambda x: "done")), data()


@BAD(raises=(ModelError, LossError), words=(("connected", "depend", "gradient", "graph"),))
def output_that_is_detached():
    return nn.Sequential(net(), blocks.Lambda(lambda x: x.detach())), data(), classify(16, 3)


@BAD(raises=(ModelError, LossError))
def forward_without_gradients():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        @torch.no_grad()
        def forward(self, x):
            return self.net(x)

    return Net(), data()


@BAD(raises=(ModelError, LossError))
def output_that_is_the_input():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.spare = nn.Linear(3, 3)

        def forward(self, x):
            return x

    return Net(), data()


@BAD(raises=ModelError, may_work=True)
def forward_that_changes_its_own_parameters():
    """Weight clipping inside the forward, as WGAN critics had it."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(10, 24), nn.Linear(24, 3)

        def forward(self, x):
            with torch.no_grad():
                self.a.weight.clamp_(-0.05, 0.05)
            return self.b(self.a(x).relu())

    return Net(), data(), classify(16, 3)


@BAD(raises=ModelError, may_work=True)
def forward_that_changes_its_parameters_through_data():
    """`.data` leaves no trace in the version counter."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(10, 24), nn.Linear(24, 3)

        def forward(self, x):
            self.a.weight.data.mul_(0.9)
            self.b.bias.data = self.b.bias.data + 1
            return self.b(self.a(x).relu())

    return Net(), data(), classify(16, 3)


@BAD(raises=ModelError, may_work=True)
def forward_that_replaces_its_parameters():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(10, 24), nn.Linear(24, 3)

        def forward(self, x):
            self.b.weight = nn.Parameter(self.b.weight.detach() * 0.5)
            self.extra = nn.Parameter(torch.ones(3))
            return self.b(self.a(x).relu()) * self.extra

    return Net(), data(), classify(16, 3)


@BAD(raises=(ModelError,), may_work=True)
def forward_that_trains_itself():
    """A whole optimizer step inside the forward, which writes `.grad` too."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(10, 24), nn.Linear(24, 3)

        def forward(self, x):
            with torch.enable_grad():
                self.b(self.a(x.detach())).square().mean().backward()
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter -= 0.1 * parameter.grad
            return self.b(self.a(x).relu())

    return Net(), data(), classify(16, 3)


# ── what the model is ────────────────────────────────────────────────────────────────────────


@BAD(raises=(ModelError, ArgumentError), words=("str",))
def model_that_is_text():
    return "resnet50", data()


@BAD(raises=(ModelError, ArgumentError))
def model_that_is_none():
    return None, data()


@BAD(raises=ModelError, words=("no parameters",))
def model_without_parameters():
    return nn.Sequential(nn.Flatten(), nn.ReLU()), data()


@BAD(raises=ModelError, words=("frozen",))
def model_that_is_all_frozen():
    return net().requires_grad_(False), data()


@BAD(raises=ModelError, words=("meta", "weight"))
def parameters_on_meta():
    with torch.device("meta"):
        model = net()
    return model, data()


@BAD(raises=ModelError, words=("meta", "3.weight"))
def one_layer_on_meta():
    model = net()
    model[3].to("meta")
    return model, data()


@BAD(raises=ModelError, words=("lazy", "weight"))
def lazy_module():
    return nn.Sequential(nn.LazyLinear(12), nn.ReLU(), nn.Linear(12, 3)), data()


@BAD(raises=ModelError, words=("lazy",))
def lazy_batch_norm():
    return nn.Sequential(nn.Linear(10, 12), nn.LazyBatchNorm1d(), nn.Linear(12, 3)), data()


@BAD(raises=ModelError, words=("sparse", "weight"))
def sparse_parameters():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(10, 10).relu().to_sparse())
            self.head = nn.Linear(10, 3)

        def forward(self, x):
            return self.head(torch.sparse.mm(self.weight, x.t()).t())

    return Net(), data(), classify(16, 3)


@BAD(raises=ModelError, may_work=True)
def complex_parameters():
    """A Fourier layer: complex weights between real layers."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inlet = nn.Linear(10, 16)
            self.filter = nn.Parameter(torch.randn(9, 9, dtype=torch.cfloat) / 3)
            self.head = nn.Linear(16, 3)

        def forward(self, x):
            spectrum = torch.fft.rfft(self.inlet(x)) @ self.filter
            return self.head(torch.fft.irfft(spectrum, n=16).relu())

    return Net(), data(), classify(16, 3)


@BAD(raises=ModelError, may_work=True)
def quantized_weights():
    """Packed int8 weights in one layer, ordinary ones in the next."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            weight = torch.quantize_per_tensor(torch.randn(24, 10), 0.05, 0, torch.qint8)
            self.register_buffer("packed", weight)
            self.head = nn.Linear(24, 3)

        def forward(self, x):
            return self.head(F.linear(x, self.packed.dequantize()).relu())

    return Net(), data(), classify(16, 3)


@BAD(raises=ModelError)
def quantized_parameter():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            weight = torch.quantize_per_tensor(torch.randn(24, 10), 0.05, 0, torch.qint8)
            self.packed = nn.Parameter(weight, requires_grad=False)
            self.head = nn.Linear(24, 3)

        def forward(self, x):
            return self.head(F.linear(x, self.packed.dequantize()).relu())

    return Net(), data(), classify(16, 3)


@BAD(raises=ModelError, may_work=True)
def integer_parameters():
    """int8 codes under a trained scale."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            codes = torch.randint(-127, 128, (24, 10), dtype=torch.int8)
            self.codes = nn.Parameter(codes, requires_grad=False)
            self.scale, self.head = nn.Parameter(torch.full((24, 1), 0.01)), nn.Linear(24, 3)

        def forward(self, x):
            return self.head(F.linear(x, self.codes * self.scale).relu())

    return Net(), data(), classify(16, 3)


@BAD(raises=ModelError, may_work=True)
def scripted_module():
    return torch.jit.script(mlp(10, 24, 3)), data(), classify(16, 3)


@BAD(raises=FaninError, may_work=True)
def parameters_made_in_inference_mode():
    with torch.inference_mode():
        model = net()
    return model, data(), classify(16, 3)


# ── the batch ────────────────────────────────────────────────────────────────────────────────


@BAD(raises=BatchError, words=("meta",))
def batch_on_another_device():
    return net(), torch.empty(16, 10, device="meta")


@BAD(raises=(ForwardError, BatchError), words=(("shape", "size", "16x7"),))
def batch_of_the_wrong_shape():
    return net(), torch.randn(16, 7)


@BAD(raises=(ForwardError, BatchError))
def batch_of_the_wrong_dtype():
    return net(), torch.randint(0, 5, (16, 10))


@BAD(raises=(ForwardError, BatchError))
def batch_of_one_under_batch_norm():
    return net(), torch.randn(1, 10)


@BAD(raises=(ForwardError, BatchError))
def batch_with_an_argument_too_many():
    return net(), (data(), data())


@BAD(raises=(ForwardError, BatchError), words=("pixels",))
def batch_with_an_unknown_name():
    return net(), {"pixels": data()}


@BAD(raises=(BatchError, ArgumentError, ForwardError))
def batch_whose_names_are_no_text():
    return net(), {1: data()}


@BAD(raises=(BatchError, ForwardError))
def batch_of_none():
    return net(), None


@BAD(raises=(BatchError, ForwardError))
def batch_of_text():
    return net(), "4x10"


@BAD(raises=(BatchError, ForwardError))
def batch_of_numpy():
    return net(), numpy.ones((16, 10), dtype="float32")


@BAD(raises=FaninError)
def batch_without_samples():
    return net(), torch.randn(0, 10), classify(0, 3)


@BAD(raises=BatchError, words=("batch", "NaN"))
def batch_that_holds_nan():
    batch = data()
    batch[3, 4] = float("nan")
    return net(), batch, classify(16, 3)


@BAD(raises=BatchError, words=("batch",))
def batch_that_holds_infinity():
    batch = data()
    batch[3, 4] = float("inf")
    return net(), (batch,), classify(16, 3)


@BAD(raises=BatchError, words=("batch", "mask"))
def batch_that_holds_nan_in_a_nested_value():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x, mask):
            return self.net(x + mask["a"][0])

    return Net(), {"x": data(), "mask": {"a": [torch.full((10,), float("nan"))]}}


@BAD(raises=BatchError, words=("batch", "one value", "random values"))
def batch_of_zeros_that_no_bias_makes_up_for():
    """A dummy that leaves every unit dead: no fault of the model."""
    return nn.Sequential(nn.Linear(10, 24, bias=False), nn.ReLU(), nn.Linear(24, 3)), 0 * data()


@BAD(raises=BatchError, words=("batch", "mask"))
def mask_that_lets_nothing_through():
    model, batch = causal_mask()
    return model, {**batch, "mask": torch.full((6, 6), -torch.inf)}


# ── the loss ─────────────────────────────────────────────────────────────────────────────────


@BAD(raises=LossError, words=("output", "empty", "[0, 3]"))
def output_without_values():
    return nn.Sequential(net(), blocks.Lambda(lambda x: x[:0])), data()


@BAD(raises=LossError, words=("scalar",))
def loss_that_is_no_scalar():
    return net(), data(), lambda out: out.square()


@BAD(raises=LossError)
def loss_that_is_a_float():
    return net(), data(), lambda out: out.sum().item()


@BAD(raises=LossError)
def loss_that_is_none():
    return net(), data(), lambda out: None


@BAD(raises=LossError)
def loss_that_is_an_integer_tensor():
    return net(), data(), lambda out: out.argmax(-1).sum()


@BAD(raises=LossError, words=(("nan", "finite"),))
def loss_that_is_nan():
    return net(), data(), lambda out: out.sum() * float("nan")


@BAD(raises=LossError, words=(("inf", "finite"),))
def loss_that_is_infinite():
    return net(), data(), lambda out: out.square().sum() * float("inf")


@BAD(raises=LossError, words=(("connected", "depend", "gradient", "graph"),))
def loss_that_is_not_connected():
    return net(), data(), lambda out: torch.zeros(())


@BAD(raises=LossError, words=(("connected", "depend", "gradient", "graph"),))
def loss_that_reads_another_tensor():
    other = torch.ones(3, requires_grad=True)
    return net(), data(), lambda out: other.sum()


@BAD(raises=(LossError, ForwardError), words=("loss",))
def loss_that_raises():
    def loss(out):
        raise RuntimeError("in the loss")

    return net(), data(), loss


@BAD(raises=(LossError, ForwardError))
def loss_of_the_wrong_shape():
    return net(), data(), classify(9, 3)


@BAD(raises=(LossError, ArgumentError), words=("loss",))
def loss_that_cannot_be_called():
    return net(), data(), "cross_entropy"


# ── the other arguments ──────────────────────────────────────────────────────────────────────

for _name, _options, _words in (
    ("seed-that-is-text", {"seed": "zero"}, ("seed", "zero")),
    ("seed-that-is-negative", {"seed": -1}, ("seed", "-1")),
    ("dtype-that-is-unknown", {"dtype": "float17"}, ("dtype", "float17")),
    ("dtype-that-is-no-float", {"dtype": torch.int64}, ("dtype", "int64")),
    ("select-of-an-unknown-code", {"select": ["Z9"]}, ("select", "Z9")),
    ("progress-that-cannot-be-called", {"progress": 1}, ("progress", "int")),
    ("record-of-another-kind", {"record": ["a"]}, ("record", "list", "recording")),
    ("select-of-nothing", {"select": []}, ("select", "names no")),
    ("ignore-of-an-unknown-code", {"ignore": ["S1", "nothing"]}, ("ignore", "nothing")),
):
    BAD.add(
        _name,
        lambda: (net(), data(), classify(16, 3)),
        raises=ArgumentError,
        words=_words,
        options=_options,
    )


# ── odd, and fine ────────────────────────────────────────────────────────────────────────────


@ODD()
def parameters_of_no_dimension():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.scale = net(), nn.Parameter(torch.tensor(1.5))
            self.register_buffer("count", torch.tensor(0))

        def forward(self, x):
            self.count += 1
            return self.net(x) * self.scale

    return Net(), data(), classify(16, 3)


@ODD()
def empty_parameters():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()
            self.none = nn.Parameter(torch.empty(0))
            self.extra = nn.Parameter(torch.empty(0, 10))

        def forward(self, x):
            x = torch.cat([x, F.linear(x, self.extra)], -1)
            return self.net(x) + self.none.sum()

    return Net(), data(), classify(16, 3)


@ODD()
def linear_without_inputs():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.empty, self.net = nn.Linear(0, 24), net()

        def forward(self, x):
            return self.net[3](self.net[:3](x) + self.empty(x[:, :0]))

    return Net(), data(), classify(16, 3)


@ODD()
def parameters_shared_between_modules():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Linear(10, 10), nn.Linear(10, 10), nn.Linear(10, 3)
            self.b.weight = self.a.weight
            self.alias = self.head

        def forward(self, x):
            return self.alias(self.b(self.a(x).relu()).relu())

    return Net(), data(), classify(16, 3)


@ODD()
def parameters_that_share_memory():
    """All parameters are views of one flat buffer, as FSDP and fused optimizers make them."""
    model = mlp(10, 24, 3)
    flat = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    place = 0
    for parameter in model.parameters():
        parameter.data = flat[place : place + parameter.numel()].view(parameter.shape)
        place += parameter.numel()
    return model, data(), classify(16, 3)


@ODD()
def parameters_that_are_not_contiguous():
    model = mlp(10, 24, 3)
    model[0].weight = nn.Parameter(torch.randn(10, 24).mul(0.3).t())
    model[2].weight = nn.Parameter(torch.randn(6, 24).mul(0.2)[::2])
    return model, data(), classify(16, 3)


@ODD()
def forward_that_modifies_its_input():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x, more):
            x.mul_(2).add_(1)
            more["scale"].fill_(3.0)
            more["log"].append("seen")
            return self.net(x) * more["scale"]

    return Net(), {"x": data(), "more": {"scale": torch.ones(1), "log": []}}, classify(16, 3)


@ODD()
def forward_that_changes_attributes_and_buffers():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.calls, self.history, self.last = net(), 0, [], None
            self.kept = {"count": 0}
            self.register_buffer("average", torch.zeros(3))

        def forward(self, x):
            self.calls += 1
            self.last = self.net(x)
            self.history.append(self.last)
            self.kept["count"] += 1
            self.average = 0.9 * self.average + 0.1 * self.last.detach().mean(0)
            self.fresh = torch.ones(2)
            self.register_buffer("late", torch.ones(2))
            return self.last

    return Net(), data(), classify(16, 3)


@ODD()
def forward_that_changes_its_modules():
    """Switches a layer to eval, freezes a bias, adds a module and a hook."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            self.net[1].eval()
            self.net[3].bias.requires_grad_(False)
            self.scratch = nn.Identity()
            self.net[0].register_forward_hook(lambda module, args, out: out)
            return self.net(x)

    return Net(), data(), classify(16, 3)


@ODD()
def forward_that_changes_the_process():
    """Seeds, default dtype and grad mode: a check puts them back."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            torch.manual_seed(1)
            numpy.random.seed(1)
            return self.net(x) + torch.rand(3) + float(numpy.random.rand())

    return Net(), data(), classify(16, 3)


NAMES = (
    "<script>alert(1)</script>",
    "\"quoted\" & 'single'",
    "new\nline\ttab",
    "größe-重み-🙂",
    "</td><b>bold",
    "[red]markup[/red]",
    "{{template}} %s %(x)d",
    "\x1b[31mescape",
    " ",
)


@ODD()
def hostile_module_names():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            for name in NAMES:
                self.add_module(name, nn.Linear(10, 10))

        def forward(self, x):
            for layer in self.children():
                x = layer(x).tanh()
            return x

    return Net(), data()


@ODD(ok=False)
def hostile_module_names_in_findings():
    """All zero, so that each name is in a finding."""
    model, batch = hostile_module_names()
    zero_(model)
    return model, batch


@ODD()
def hostile_class_name():
    return type("<b>Net</b>\n[bold]", (nn.Sequential,), {})(nn.Linear(10, 3)), data()


@ODD()
def module_names_that_shadow_attributes():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.name, self.hooks = (
                nn.Linear(10, 10),
                nn.Linear(10, 10),
                nn.Linear(10, 3),
            )

        def forward(self, x):
            return self.hooks(self.name(self.weight(x).relu()).relu())

    return Net(), data(), classify(16, 3)


@ODD()
def slots_and_properties():
    class Net(nn.Module):
        __slots__ = ("note",)

        def __init__(self):
            super().__init__()
            self.net = net()
            self.note = "kept in a slot"

        @property
        def broken(self):
            raise RuntimeError("nobody asked")

        def forward(self, x):
            return self.net(x)

    return Net(), data(), classify(16, 3)


@ODD()
def generator_as_batch_elements_and_plain_values():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x, scale, flag, text, nothing):
            return self.net(x) * scale if flag and text and nothing is None else None

    return Net(), (data(), 2.0, True, "yes", None), classify(16, 3)


@ODD()
def tensor_subclass_in_the_batch():
    class Named(torch.Tensor):
        pass

    return net(), data().as_subclass(Named), classify(16, 3)


@ODD()
def batch_of_zeros():
    return mlp(10, 24, 3), torch.zeros(16, 10), classify(16, 3)


@ODD()
def causal_mask():
    """−inf is what `nn.Transformer.generate_square_subsequent_mask` gives where none may look."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(10, 10) for _ in range(3))
            self.head = nn.Linear(10, 3)

        def forward(self, x, mask):
            scores = self.query(x) @ self.key(x).mT / 10**0.5
            return self.head((scores + mask).softmax(-1) @ self.value(x))

    return Net(), {
        "x": torch.randn(5, 6, 10),
        "mask": nn.Transformer.generate_square_subsequent_mask(6),
    }


@ODD()
def batch_views_of_one_tensor():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, a, b):
            return self.net(a) + self.net(b)

    whole = torch.randn(32, 10)
    return Net(), (whole[:16], whole[16:]), classify(16, 3)


# ── interrupted ──────────────────────────────────────────────────────────────────────────────


class Calls(nn.Module):
    """Counts the forwards and backwards that pass through it, and raises at the n-th of a kind.

    What it counts lies outside of the module, so copies of the module count on.
    """

    def __init__(self, counts: dict[str, int], stop: tuple[str, int] | None) -> None:
        super().__init__()
        self._seen = lambda kind: self._count(counts, stop, kind)

    @staticmethod
    def _count(counts, stop, kind):
        counts[kind] = counts.get(kind, 0) + 1
        if stop == (kind, counts[kind]):
            raise KeyboardInterrupt

    def forward(self, x):
        self._seen("forward")
        if x.requires_grad:
            x.register_hook(lambda grad: self._seen("backward"))
        return x * 1.0


def interrupted(counts: dict[str, int], stop: tuple[str, int] | None, zeros: bool):
    """A model that can be stopped in forward and backward; with zeros it needs virtual steps."""
    model = nn.Sequential(
        nn.Linear(10, 24),
        nn.BatchNorm1d(24),
        nn.ReLU(),
        nn.Dropout(0.1),
        Calls(counts, stop),
        nn.Linear(24, 3),
    )
    if zeros:
        zero_(model[5])
    model[0].weight.grad = torch.ones_like(model[0].weight)
    return model, data(), classify(16, 3)
