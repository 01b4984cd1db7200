"""Traps: models that look ill and are not.  None may get an error; some codes must not appear."""

from __future__ import annotations

import math
import random
import threading
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from zoo import Zoo, blocks
from zoo.blocks import Actor, BasicBlock, Bent, Stepwise, Variational, classify, mlp, regress, zero_

__all__ = ["TRAPS"]

TRAPS = Zoo(ok=True)


# ── intended zeros ───────────────────────────────────────────────────────────────────────────


@TRAPS(thread="vision#5804", absent=("S101", "S102"))
def zero_head_of_a_vit():
    from zoo.healthy import vit_by_hand

    return vit_by_hand()


@TRAPS(thread="mup#13", absent=("S101", "S102"))
def zero_readout():
    model = mlp(20, 64, 64, 5)
    zero_(model[-1])
    return model, torch.randn(32, 20), classify(32, 5)


@TRAPS(absent=("S101", "S102"))
def zero_readout_without_a_loss():
    model = mlp(20, 64, 64, 5, act=nn.Tanh)
    zero_(model[-1])
    return model, torch.randn(32, 20)


@TRAPS(absent=("S101", "S102"))
def zero_readout_of_a_regression():
    model = mlp(20, 64, 1, act=nn.GELU)
    zero_(model[-1])
    return model, torch.randn(32, 20), regress(32, 1)


@TRAPS(absent=("S101", "S102"))
def zero_readout_at_the_least_of_its_loss():
    """The square of zeros has no slope, whatever the weights: it says nothing of the start."""
    model, batch = zero_readout_without_a_loss()
    return model, batch, lambda out: out.square().mean()


@TRAPS(absent=("S101", "S102"))
def zero_modulation_of_a_dit_at_the_least_of_its_loss():
    model, batch, _ = zero_modulation_of_a_dit()
    return model, batch, lambda out: out.abs().sum()


@TRAPS(absent=("S102",))
def constant_last_layer_under_softmax():
    """The residuals sum to zero, so the hidden gradient is exactly zero at step 0 only."""
    model = mlp(20, 32, 5)
    nn.init.constant_(model[-1].weight, 0.3)
    zero_bias = model[-1].bias
    nn.init.zeros_(zero_bias)
    return model, torch.randn(40, 20), classify(40, 5)


@TRAPS(thread="DiT#82", absent=("S101", "S102"))
def zero_modulation_of_a_dit():
    from zoo.healthy import dit_like

    return dit_like()


@TRAPS(thread="guided-diffusion", absent=("S101", "S102"))
def zero_modules_of_a_diffusion_unet():
    from zoo.healthy import diffusion_unet_zero_modules

    return diffusion_unet_zero_modules()


@TRAPS(absent=("S101", "S102"))
def frozen_zeros_that_hold_nothing():
    """A table of positions, biases, and a branch that is switched off as a whole."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.positions = nn.Embedding(20, 16), nn.Embedding(6, 16)
            self.offsets = nn.Parameter(torch.zeros(6, 16))
            self.register_buffer("mask", torch.zeros(6, 16))
            self.branch, self.head = mlp(16, 32, 16), nn.Linear(16, 20)
            zero_(self.positions, self.branch[2])
            nn.init.zeros_(self.head.bias)
            for part in (self.positions, self.branch, self.offsets, self.head.bias):
                part.requires_grad_(False)

        def forward(self, tokens):
            x = self.tokens(tokens) + self.positions(torch.arange(6)) + self.offsets + self.mask
            return self.head(torch.relu(x + self.branch(x)))

    tokens = torch.randint(0, 20, (8, 6))
    return Net(), tokens, lambda out: F.cross_entropy(out.flatten(0, 1), tokens.flatten())


@TRAPS(absent=("S102",))
def one_token_between_branches_switched_off():
    """A softmax of one score has no slope: the batch holds queries and keys, no frozen zero."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v, self.head = (nn.Linear(16, 16) for _ in range(4))
            self.before, self.after = mlp(16, 32, 16), mlp(16, 32, 16)
            zero_(self.before[2], self.after[2])
            self.before.requires_grad_(False)
            self.after.requires_grad_(False)

        def forward(self, x):
            x = x + self.before(x)
            x = x + F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))
            return self.head(x + self.after(x))

    return Net(), torch.randn(32, 1, 16), regress(32, 1, 16)


@TRAPS(thread="LoRA#98", absent=("S101", "S102"))
def lora_with_b_zero():
    from zoo.healthy import adapted

    return adapted(blocks.LoRA)()


def zero_branch_over_dead_units(learned: bool):
    """Rows of zeros behind which the stream is dead; what stands between adds constants alone."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inlet, self.first, self.head = (
                nn.Linear(16, 32),
                nn.Linear(32, 32),
                nn.Linear(32, 4),
            )
            self.last = nn.Linear(32, 32, bias=False)
            self.shift = nn.Parameter(torch.zeros(32), requires_grad=learned)
            self.scale = nn.Buffer(torch.ones(32))
            with torch.no_grad():
                self.inlet.bias[[3, 7]] = -100.0
                self.last.weight.zero_()

        def forward(self, x):
            x = self.inlet(x)
            y = self.last(self.first(x).relu()) * self.scale
            return self.head((x + (y + self.shift)).relu())

    return Net(), torch.randn(64, 16), regress(64, 4)


TRAPS.add(
    "zero-branch-over-dead-units", lambda: zero_branch_over_dead_units(False), absent=("S101",)
)
TRAPS.add(
    "zero-branch-with-a-bias-over-dead-units",
    lambda: zero_branch_over_dead_units(True),
    absent=("S101",),
)


@TRAPS(thread="LoRA#98", absent=("S101", "S102"))
def lora_with_a_zero():
    class Other(blocks.LoRA):
        def __init__(self, base, rank=4):
            super().__init__(base, rank)
            nn.init.zeros_(self.A)
            nn.init.normal_(self.B, std=0.1)

    from zoo.healthy import adapted

    return adapted(Other)()


@TRAPS(absent=("S101", "S102"))
def lora_on_a_single_linear():
    return blocks.LoRA(nn.Linear(12, 9), 3), torch.randn(16, 12), regress(16, 9)


@TRAPS(thread="LoRA#98", absent=("S101", "S102"))
def lora_on_a_single_linear_whose_outputs_are_summed():
    """The loss treats all outputs alike, so only a target would tell the rows of B apart."""
    model, batch, _ = lora_on_a_single_linear()
    return model, batch, lambda out: out.sum()


@TRAPS(absent=("S101", "S102"))
def lora_over_units_dead_on_the_batch():
    """The frozen layer holds some ReLU units shut: their rows of B are zeros without a gradient."""
    layers = [blocks.LoRA(nn.Linear(n, 64)) for n in (20, 64, 64)]
    model = nn.Sequential(
        layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2], nn.ReLU(), nn.Linear(64, 5)
    )
    return model, torch.randn(8, 20), classify(8, 5)


@TRAPS(absent=("S101", "S102"))
def scaled_lora_of_convolutions_over_dead_channels():
    class Adapted(nn.Module):
        def __init__(self, n, m):
            super().__init__()
            self.base = nn.Conv2d(n, m, 3).requires_grad_(False)
            self.a, self.b = nn.Conv2d(n, 2, 3, bias=False), nn.Conv2d(2, m, 1, bias=False)
            zero_(self.b)
            nn.init.constant_(self.base.bias[::2], -20.0)

        def forward(self, x):
            return self.base(x) + 2.0 * self.b(self.a(x))

    model = nn.Sequential(Adapted(3, 16), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4))
    return model, torch.randn(8, 3, 6, 6), classify(8, 4)


@TRAPS(absent=("S101", "S102"))
def controlnet_zero_convolutions():
    """A trainable copy beside a frozen backbone, joined by zero convolutions at both ends."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.locked = nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1)
            )
            self.copy = nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1)
            )
            self.copy.load_state_dict(self.locked.state_dict())
            self.locked.requires_grad_(False)
            self.inlet, self.outlet = nn.Conv2d(3, 3, 1), nn.Conv2d(8, 8, 1)
            zero_(self.inlet, self.outlet)

        def forward(self, x, hint):
            return self.locked(x) + self.outlet(self.copy(x + self.inlet(hint)))

    return Net(), (torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)), regress(4, 8, 8, 8)


@TRAPS(absent=("S101", "S102", "S104"))
def zero_gamma_in_the_last_norm_of_each_block():
    model = blocks.ResNet(BasicBlock, (2, 2), (8, 16), 8, zero_norm=True)
    return model, torch.randn(4, 3, 12, 12), classify(4, 10)


@TRAPS(absent=("S101", "S102"))
def fixup():
    from zoo.healthy import fixup_16

    return fixup_16()


@TRAPS(absent=("S101", "S102"))
def rezero():
    from zoo.healthy import rezero_40

    return rezero_40()


@TRAPS(absent=("S101", "S102"))
def skipinit():
    from zoo.healthy import skipinit_16

    return skipinit_16()


@TRAPS(absent=("S101", "S102"))
def zero_last_layer_of_each_residual_mlp():
    def block():
        last = nn.Linear(48, 24)
        zero_(last)
        return blocks.Residual(nn.LayerNorm(24), nn.Linear(24, 48), nn.ReLU(), last)

    model = nn.Sequential(nn.Linear(10, 24), *(block() for _ in range(6)), nn.Linear(24, 4))
    return model, torch.randn(32, 10), classify(32, 4)


@TRAPS(absent=("S101", "S102", "P201", "P203"))
def layer_scale_1e_6():
    def block():
        return blocks.Scaled(
            nn.LayerNorm(24),
            nn.Linear(24, 96),
            nn.GELU(),
            nn.Linear(96, 24),
            start=1e-6,
            channels=24,
        )

    model = nn.Sequential(
        nn.Linear(10, 24), *(block() for _ in range(12)), nn.LayerNorm(24), nn.Linear(24, 4)
    )
    return model, torch.randn(32, 10), classify(32, 4)


@TRAPS(absent=("P201", "P203"))
def layer_scale_behind_an_attention_that_averages():
    """Small weights make the mean of many tokens, and of that a hundred-thousandth is added."""
    blocks_ = []
    for _ in range(4):
        attention = blocks.Attention(24, 2)
        zero_(attention)
        for weight in (attention.qkv.weight, attention.proj.weight):
            nn.init.normal_(weight, std=0.004)
        mixer = blocks.Scaled(nn.LayerNorm(24), attention, start=1e-5, channels=24)
        body = (nn.LayerNorm(24), nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))
        blocks_ += [mixer, blocks.Scaled(*body, start=1e-5, channels=24)]
    ends = (blocks.Lambda(lambda x: x.mean(1)), nn.LayerNorm(24), nn.Linear(24, 4))
    model = nn.Sequential(nn.Linear(10, 24), *blocks_, *ends)
    return model, torch.randn(16, 64, 10), classify(16, 4)


@TRAPS(absent=("S101", "S102"))
def zero_head_over_layer_scale():
    """Two intended small factors on the path of every block, one of them exactly zero."""
    body = [
        blocks.Scaled(nn.LayerNorm(16), nn.Linear(16, 16), nn.GELU(), start=1e-6, channels=16)
        for _ in range(4)
    ]
    model = nn.Sequential(nn.Linear(10, 16), *body, nn.Linear(16, 4))
    zero_(model[-1])
    return model, torch.randn(32, 10), classify(32, 4)


@TRAPS(absent=("S101", "S102"))
def zero_relative_position_tables():
    from zoo.healthy import swin_like

    return swin_like()


@TRAPS(absent=("S101", "S102"))
def zero_class_token_and_positions():
    class Net(nn.Module):
        def __init__(self, width=24):
            super().__init__()
            self.inlet = nn.Linear(6, width)
            self.token = nn.Parameter(torch.zeros(1, 1, width))
            self.position = nn.Parameter(torch.zeros(1, 9, width))
            self.blocks = nn.Sequential(blocks.Block(width, 4), blocks.Block(width, 4))
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 4)

        def forward(self, x):
            x = torch.cat([self.token.expand(len(x), -1, -1), self.inlet(x)], 1) + self.position
            return self.head(self.norm(self.blocks(x))[:, 0])

    return Net(), torch.randn(8, 8, 6), classify(8, 4)


@TRAPS(absent=("S101", "S102", "S104"))
def zero_biases_everywhere():
    model = mlp(20, 64, 64, 64, 5)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.bias)
    return model, torch.randn(32, 20), classify(32, 5)


@TRAPS(absent=("S101", "S102", "S104"))
def fresh_norms():
    """Many norms, all γ = 1 and β = 0: bit-identical, and no clones."""
    layers = []
    for _ in range(5):
        layers += [nn.Linear(24, 24), nn.LayerNorm(24), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(24, 4)), torch.randn(32, 24), classify(32, 4)


@TRAPS(absent=("S101", "S102"))
def zero_first_layer_under_tanh():
    """W1 = 0 and W2 random: the gradient reaches W1 and breaks it at the first step."""
    model = mlp(20, 32, 5, act=nn.Tanh)
    zero_(model[0])
    return model, torch.randn(32, 20), classify(32, 5)


@TRAPS(absent=("S101", "S102"))
def zero_layer_inside_a_residual_tanh_net():
    last = nn.Linear(24, 24)
    zero_(last)
    body = [blocks.Residual(nn.Linear(24, 24), nn.Tanh()) for _ in range(3)]
    model = nn.Sequential(
        nn.Linear(10, 24), body[0], blocks.Residual(last, nn.Tanh()), *body[1:], nn.Linear(24, 4)
    )
    return model, torch.randn(32, 10), classify(32, 4)


@TRAPS(absent=("S102",))
def zero_gates_of_a_gated_attention():
    """Flamingo: tanh(α) with α = 0 before a branch that is random."""

    class Gated(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.alpha, self.body = nn.Parameter(torch.zeros(1)), mlp(n, 2 * n, n, act=nn.GELU)

        def forward(self, x):
            return x + self.alpha.tanh() * self.body(x)

    model = nn.Sequential(nn.Linear(10, 24), *(Gated(24) for _ in range(3)), nn.Linear(24, 4))
    return model, torch.randn(32, 10), classify(32, 4)


@TRAPS()
def gelu_layer_that_starts_at_zero():
    """The slope at zero is ½: one zero layer is a delay of one step."""
    model = mlp(20, 32, 32, 5, act=nn.GELU)
    zero_(model[2])
    return model, torch.randn(32, 20), classify(32, 5)


# ── units that look the same ─────────────────────────────────────────────────────────────────


@TRAPS(absent=("S101",))
def identical_units_with_distinct_outgoing_weights():
    model = mlp(20, 16, 5)
    with torch.no_grad():
        model[0].weight[:] = model[0].weight[0].clone()
        model[0].bias[:] = model[0].bias[0].clone()
    return model, torch.randn(32, 20), classify(32, 5)


@TRAPS(absent=("S101",))
def constant_first_layer_with_distinct_outgoing_weights():
    model = mlp(20, 16, 16, 5, act=nn.Tanh)
    nn.init.constant_(model[0].weight, 0.1)
    nn.init.zeros_(model[0].bias)
    return model, torch.randn(32, 20), classify(32, 5)


@TRAPS(absent=("S101",))
def distinct_units_with_equal_outgoing_weights():
    model = mlp(20, 16, 5, act=nn.Tanh)
    with torch.no_grad():
        model[2].weight[:] = model[2].weight[:, :1].clone()
    return model, torch.randn(32, 20), classify(32, 5)


@TRAPS(absent=("S101",))
def equal_rows_that_differ_in_their_bias():
    model = mlp(6, 12, 3, act=nn.Tanh)
    nn.init.constant_(model[0].weight, 0.2)
    nn.init.uniform_(model[0].bias, -1, 1)
    return model, torch.randn(32, 6), classify(32, 3)


@TRAPS(absent=("S101", "S102"))
def zero_start_identity_and_hadamard():
    """ZerO: partial identity, and Hadamard where the width grows."""

    def hadamard(n):
        h = torch.ones(1, 1)
        while len(h) < n:
            h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
        return h

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inlet, self.head = nn.Linear(16, 32, bias=False), nn.Linear(32, 4)
            self.blocks = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
            with torch.no_grad():
                self.inlet.weight.copy_(torch.eye(32)[:, :16] @ hadamard(16) / 4)
                self.inlet.weight[16:] = hadamard(16) / 4 @ torch.diag(torch.linspace(0.5, 1, 16))
            zero_(self.blocks, self.head)

        def forward(self, x):
            x = self.inlet(x)
            for block in self.blocks:
                x = x + block(x).relu() + block(x)
            return self.head(x)

    return Net(), torch.randn(32, 16), classify(32, 4)


@TRAPS(absent=("S101", "S102"))
def identity_starts():
    """IRNN: recurrent matrix I, and linear layers at I in a residual-free stack."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.RNN(6, 24, nonlinearity="relu", batch_first=True)
            self.middle, self.head = nn.Linear(24, 24), nn.Linear(24, 3)
            with torch.no_grad():
                nn.init.eye_(self.rnn.weight_hh_l0)
                nn.init.normal_(self.rnn.weight_ih_l0, std=0.1)
                nn.init.eye_(self.middle.weight)
                for bias in (self.rnn.bias_ih_l0, self.rnn.bias_hh_l0, self.middle.bias):
                    nn.init.zeros_(bias)

        def forward(self, x):
            return self.head(self.middle(self.rnn(x)[0][:, -1]).relu())

    return Net(), torch.randn(24, 9, 6), classify(24, 3)


@TRAPS(absent=("S101",))
def dirac_convolutions():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    nn.init.dirac_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    return model, torch.randn(8, 3, 8, 8), classify(8, 4)


@TRAPS(absent=("S101", "S105"))
def looks_linear():
    """Mirrored pairs under ReLU: [W; −W], then [W, −W; −W, W]: isometric at the start."""
    model = mlp(10, 32, 32, 32, 4, bias=False)
    first, second, third, last = (layer.weight for layer in model if isinstance(layer, nn.Linear))
    with torch.no_grad():
        w = nn.init.orthogonal_(torch.empty(16, 10))
        first.copy_(torch.cat([w, -w]))
        for middle in (second, third):
            w = nn.init.orthogonal_(torch.empty(16, 16))
            middle.copy_(torch.cat([torch.cat([w, -w], 1), torch.cat([-w, w], 1)]))
        w = nn.init.orthogonal_(torch.empty(4, 16))
        last.copy_(torch.cat([w, -w], 1))
    return model, torch.randn(32, 10), classify(32, 4)


@TRAPS(absent=("S101", "S105"))
def mirrored_pairs_with_unrelated_outgoing_weights():
    """Under tanh, rows w and −w whose outgoing columns are no mirror images."""
    model = mlp(10, 16, 4, act=nn.Tanh)
    with torch.no_grad():
        model[0].weight[8:] = -model[0].weight[:8]
        model[0].bias[8:] = -model[0].bias[:8]
    return model, torch.randn(32, 10), classify(32, 4)


@TRAPS(absent=("S101",))
def rademacher_weights():
    """Every weight is ±σ: many units agree in many places, and all entries lie at the bound."""
    model = mlp(40, 48, 48, 5)
    with torch.no_grad():
        for layer in model[:4:2]:
            layer.weight.copy_(torch.randint(0, 2, layer.weight.shape) * 2 - 1).mul_(
                layer.in_features**-0.5
            )
    return model, torch.randn(32, 40), classify(32, 5)


@TRAPS(absent=("S101",))
def sparse_start():
    """Martens: a few random connections per unit, the rest zero."""
    model = mlp(40, 48, 48, 5, act=nn.Tanh)
    for layer in (model[0], model[2]):
        nn.init.sparse_(layer.weight, sparsity=0.8, std=0.5)
    return model, torch.randn(32, 40), classify(32, 5)


@TRAPS(absent=("S101", "S102"))
def duplicated_input_features():
    """The columns of the batch are equal; the units are not."""
    batch = torch.randn(32, 5).repeat(1, 4)
    return mlp(20, 32, 4), batch, classify(32, 4)


@TRAPS(absent=("S101",))
def nearly_equal_units():
    """Copies with a little noise: they separate."""
    model = mlp(12, 16, 4, act=nn.Tanh)
    with torch.no_grad():
        model[0].weight[8:] = model[0].weight[:8]
        model[0].weight[8:] += 1e-2 * torch.randn(8, 12)
        model[2].weight.div_(2)
        model[2].weight[:, 8:] = model[2].weight[:, :8]
    return model, torch.randn(32, 12), classify(32, 4)


@TRAPS(absent=("S101", "S102"))
def linear_of_one_output():
    model = mlp(20, 32, 1)
    labels = torch.randint(0, 2, (32, 1)).float()
    return model, torch.randn(32, 20), lambda out: F.binary_cross_entropy_with_logits(out, labels)


@TRAPS(absent=("S101",))
def two_output_units_that_start_equal():
    """Softmax over two classes whose rows start equal: the labels tell them apart."""
    model = mlp(20, 32, 2)
    with torch.no_grad():
        model[2].weight[1] = model[2].weight[0]
        model[2].bias[1] = model[2].bias[0]
    return model, torch.randn(32, 20), classify(32, 2)


@TRAPS(absent=("S101", "S102"))
def experts_with_distinct_routers():
    """fastmoe#4 with a router that differs: the experts separate."""
    model = nn.Sequential(nn.Linear(10, 16), blocks.BatchedExperts(), nn.Linear(16, 4))
    with torch.no_grad():
        for weight in (model[1].w1, model[1].w2):
            weight[:] = weight[:1].clone()
    return model, torch.randn(48, 10), classify(48, 4)


@TRAPS(absent=("S101", "S104"))
def tied_weights():
    from zoo.healthy import language_model

    return language_model(tied=True)()


@TRAPS(absent=("S101", "S104"))
def one_module_under_two_names():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.left = self.right = mlp(9, 24, 24)
            self.head = nn.Linear(48, 3)

        def forward(self, a, b):
            return self.head(torch.cat([self.left(a), self.right(b)], -1))

    return Net(), (torch.randn(20, 9), torch.randn(20, 9)), classify(20, 3)


@TRAPS(absent=("S101",))
def target_network():
    """A frozen copy of the trained network: bit-identical on purpose."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.online, self.target = mlp(8, 32, 4), mlp(8, 32, 4)
            self.target.load_state_dict(self.online.state_dict())
            self.target.requires_grad_(False)

        def forward(self, now, later):
            return self.online(now), self.target(later)

    return (
        Net(),
        (torch.randn(32, 8), torch.randn(32, 8)),
        lambda out: F.smooth_l1_loss(out[0].amax(1), 0.9 * out[1].amax(1) + 0.1),
    )


@TRAPS(absent=("S101",))
def batched_heads_of_an_ensemble():
    """torch.vmap over stacked parameters: members differ."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w1, self.w2 = (
                nn.Parameter(torch.randn(3, 10, 16) / 3),
                nn.Parameter(torch.randn(3, 16, 4) / 4),
            )

        def forward(self, x):
            h = torch.bmm(x.expand(3, -1, -1), self.w1).relu()
            return torch.bmm(h, self.w2).mean(0)

    return Net(), torch.randn(32, 10), classify(32, 4)


# ── rows of a parameter that start equal ─────────────────────────────────────────────────────


class Placed(nn.Module):
    """A table of positions, all of one value, added to tokens or pictures."""

    def __init__(self, inlet: nn.Module, value: float, count: int = 8):
        super().__init__()
        self.inlet, self.block, self.head = inlet, blocks.Block(32, 4), nn.Linear(32, 5)
        self.places = nn.Parameter(torch.full((1, count, 32), value))

    def forward(self, x):
        return self.head(self.block(self.inlet(x) + self.places).mean(1))


@TRAPS(thread="minGPT", absent=("S101",))
def table_of_positions_of_zeros():
    return Placed(nn.Linear(20, 32), 0.0), torch.randn(32, 8, 20), classify(32, 5)


@TRAPS(absent=("S101",))
def table_of_positions_of_one_value_behind_a_zero_head():
    model = Placed(nn.Linear(20, 32), 0.5)
    zero_(model.head)
    return model, torch.randn(32, 8, 20), classify(32, 5)


@TRAPS(absent=("S101",))
def positions_of_zeros_where_all_pictures_are_black():
    """It is this batch that holds them together."""
    pictures = torch.randn(32, 8, 20)
    pictures[:, 5:] = 0.0
    return Placed(nn.Linear(20, 32), 0.0), pictures, classify(32, 5)


def positions_of_zeros_behind_padding(inlet):
    """The last three tokens of every sample are padding, which nothing masks."""
    tokens = torch.randint(1, 20, (32, 8))
    tokens[:, 5:] = 0
    return Placed(inlet(), 0.0), tokens, classify(32, 5)


class Picked(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(20, 32))

    def forward(self, tokens):
        return self.table[tokens]


TRAPS.add(
    "positions-of-zeros-behind-padding",
    lambda: positions_of_zeros_behind_padding(lambda: nn.Embedding(20, 32)),
    absent=("S101",),
)
TRAPS.add(
    "positions-of-zeros-behind-padding-of-a-table-by-hand",
    lambda: positions_of_zeros_behind_padding(Picked),
    absent=("S101",),
)


@TRAPS(absent=("S101",))
def positions_of_zeros_where_all_tokens_are_one():
    model = Placed(nn.Embedding(20, 32), 0.0)
    return model, torch.ones(32, 8, dtype=torch.long), classify(32, 5)


@TRAPS(thread="DETR", absent=("S101",))
def object_queries_of_zeros_with_places():
    """Their places are learned, and added before they read anything."""
    model = blocks.Resampler(torch.zeros(6, 32), places=True)
    return model, torch.randn(32, 10, 32), classify(32, 5)


@TRAPS(absent=("S101",))
def queries_of_zeros_each_with_a_class_of_its_own():
    """The classes of three of them are the same in this batch, and the same for all samples."""
    labels = torch.randint(0, 5, (32, 6))
    labels[:, 3:] = 0
    return (
        blocks.Resampler(torch.zeros(6, 32), each=True),
        torch.randn(32, 10, 32),
        lambda out: F.cross_entropy(out.flatten(0, 1), labels.flatten()),
    )


class Prototypes(nn.Module):
    """A class for each prototype, which starts at zero; the loss is the model's own, or not."""

    def __init__(self):
        super().__init__()
        self.prototypes, self.net = nn.Parameter(torch.zeros(6, 8)), mlp(10, 32, 8)

    def forward(self, x, labels=None):
        logits = -torch.cdist(self.net(x)[:, None], self.prototypes[None])[:, 0].square()
        if labels is None:
            return logits
        return SimpleNamespace(loss=F.cross_entropy(logits, labels), logits=logits)


@TRAPS(absent=("S101",))
def prototypes_of_zeros_of_classes_that_the_batch_lacks():
    return Prototypes(), torch.randn(32, 10), classify(32, 3)


@TRAPS(absent=("S101",))
def prototypes_of_zeros_of_classes_that_the_batch_lacks_in_the_models_own_loss():
    return Prototypes(), {"x": torch.randn(32, 10), "labels": torch.randint(0, 3, (32,))}


@TRAPS(absent=("S101",))
def prompts_of_zeros_with_places():
    model = blocks.Prefixed(torch.zeros(4, 32), torch.randn(12, 32) / 50)
    return model, torch.randn(32, 8, 32), classify(32, 5)


@TRAPS(absent=("S101",))
def one_learned_token_of_zeros():
    return blocks.Prefixed(torch.zeros(1, 32)), torch.randn(32, 8, 32), classify(32, 5)


@TRAPS(absent=("S101",))
def frozen_registers_of_zeros():
    model = blocks.Prefixed(torch.zeros(4, 32))
    model.rows.requires_grad_(False)
    return model, torch.randn(32, 8, 32), classify(32, 5)


@TRAPS(absent=("S101",))
def table_of_zeros_of_which_the_batch_picks_a_tenth():
    """The other rows get no gradient; and words of one bag get the same in this batch alone."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.bag = nn.Embedding(200, 32), nn.EmbeddingBag(200, 32)
            self.head = nn.Linear(32, 5)
            zero_(self.words, self.bag)

        def forward(self, words):
            return self.head((self.words(words).mean(1) + self.bag(words) + 1).tanh())

    return Net(), torch.arange(32).view(8, 4), classify(8, 5)


@TRAPS(absent=("S101",))
def two_tokens_of_zeros_with_a_head_each():
    """As the class and the distillation token of DeiT."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.block = nn.Parameter(torch.zeros(1, 2, 32)), blocks.Block(32, 4)
            self.head, self.other = nn.Linear(32, 5), nn.Linear(32, 5)

        def forward(self, x):
            x = self.block(torch.cat([self.tokens.expand(len(x), -1, -1), x], 1))
            return (self.head(x[:, 0]) + self.other(x[:, 1])) / 2

    return Net(), torch.randn(32, 8, 32), classify(32, 5)


@TRAPS(absent=("S101",))
def equal_rows_that_are_only_summed():
    """Whatever they start as, they get one gradient; no start is at fault."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows = nn.Parameter(torch.ones(4, 32))
            self.inlet, self.head = nn.Linear(10, 32), nn.Linear(32, 5)

        def forward(self, x):
            return self.head(torch.tanh(self.inlet(x) + self.rows.mean(0)))

    return Net(), torch.randn(32, 10), classify(32, 5)


@TRAPS(absent=("S101",))
def table_of_zeros_for_shifts_scales_and_gates():
    """Six rows with a use each, as in PixArt."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Parameter(torch.zeros(6, 32)), nn.Linear(32, 5)
            self.mixer, self.mlp = blocks.Attention(32, 4), mlp(32, 64, 32)

        def forward(self, x):
            shift, scale, gate, shift2, scale2, gate2 = self.table
            x = x + gate * self.mixer(x * (1 + scale) + shift)
            x = x + gate2 * self.mlp(x * (1 + scale2) + shift2)
            return self.head(x.mean(1))

    return Net(), torch.randn(32, 8, 32), classify(32, 5)


# ── gradients that are zero for an innocent reason ───────────────────────────────────────────


@TRAPS(absent=("S102",))
def bias_before_batch_norm():
    """Its gradient is zero up to round-off, for ever; nothing is lost."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    return model, torch.randn(8, 3, 8, 8), classify(8, 4)


@TRAPS(absent=("S102",))
def bias_of_the_attention_keys():
    """Softmax does not see it."""

    class Net(nn.Module):
        def __init__(self, n=24):
            super().__init__()
            self.q, self.k, self.v, self.head = (
                nn.Linear(n, n),
                nn.Linear(n, n),
                nn.Linear(n, n),
                nn.Linear(n, 3),
            )

        def forward(self, x):
            weights = (self.q(x) @ self.k(x).transpose(1, 2) / math.sqrt(24)).softmax(-1)
            return self.head((weights @ self.v(x)).mean(1))

    return Net(), torch.randn(8, 6, 24), classify(8, 3)


@TRAPS(absent=("S102",))
def sequence_of_one_token():
    """Attention over one position: q and k cannot get a gradient from this batch."""
    model = nn.Sequential(nn.Linear(6, 24), blocks.Block(24, 4), nn.Flatten(), nn.Linear(24, 3))
    return model, torch.randn(16, 1, 6), classify(16, 3)


@TRAPS(absent=("S102",))
def single_step_of_an_lstm():
    """One time step from a zero state: the recurrent weights get no gradient from this batch."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(6, 16, batch_first=True), nn.Linear(16, 3)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    return Net(), torch.randn(16, 1, 6), classify(16, 3)


@TRAPS(absent=("S102",))
def experts_nobody_visits():
    """Top-1 routing of a few samples: some experts see none of this batch."""
    model = nn.Sequential(
        nn.Linear(10, 16), blocks.Residual(blocks.RoutedExperts(experts=8, top=2)), nn.Linear(16, 4)
    )
    return model, torch.randn(3, 10), classify(3, 4)


@TRAPS(absent=("S102",))
def unseen_embedding_rows():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.kinds, self.head = (
                nn.Embedding(500, 16),
                nn.Embedding(9, 16),
                nn.Linear(16, 3),
            )

        def forward(self, tokens):
            return self.head((self.embed(tokens) + self.kinds(torch.zeros_like(tokens))).mean(1))

    return Net(), torch.randint(0, 500, (4, 5)), classify(4, 3)


@TRAPS(absent=("S102",))
def padding_row_of_an_embedding():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(30, 16, padding_idx=0), nn.Linear(16, 3)

        def forward(self, tokens):
            return self.head(self.embed(tokens).mean(1))

    tokens = torch.randint(1, 30, (12, 7))
    tokens[:, 4:] = 0
    return Net(), tokens, classify(12, 3)


@TRAPS(absent=("S101", "S102"))
def frozen_backbone():
    from zoo.healthy import frozen_backbone as build

    return build()


@TRAPS(absent=("S101", "S102", "S104"))
def frozen_layers_that_are_constant():
    """A fixed blur filter, the same for each channel: frozen, so no unit of it is to be trained."""
    blur = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False).requires_grad_(False)
    nn.init.constant_(blur.weight, 1 / 9)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), blur, nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    return model, torch.randn(8, 3, 10, 10), classify(8, 4)


@TRAPS()
def head_that_the_loss_does_not_read():
    """An auxiliary head, switched off: unused, not ill."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.head, self.auxiliary = (
                mlp(10, 24, 24),
                nn.Linear(24, 3),
                nn.Linear(24, 5),
            )

        def forward(self, x):
            h = self.trunk(x).relu()
            return self.head(h), self.auxiliary(h)

    labels = torch.randint(0, 3, (16,))
    return Net(), torch.randn(16, 10), lambda out: F.cross_entropy(out[0], labels)


@TRAPS()
def mask_token_that_is_not_used():
    """A parameter that only another mode of the model reads."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.mask_token = nn.Parameter(torch.zeros(24))
            self.inlet, self.block, self.head = (
                nn.Linear(6, 24),
                blocks.Block(24, 4),
                nn.Linear(24, 3),
            )

        def forward(self, x, mask=None):
            x = self.inlet(x)
            if mask is not None:
                x = torch.where(mask[..., None], self.mask_token, x)
            return self.head(self.block(x).mean(1))

    return Net(), torch.randn(8, 5, 6), classify(8, 3)


# ── batches that look ill ────────────────────────────────────────────────────────────────────


@TRAPS(absent=("S101", "S102"))
def constant_input_channel():
    batch = torch.randn(8, 4, 8, 8)
    batch[:, 2] = 0.0
    batch[:, 3] = 1.0
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    return model, batch, classify(8, 4)


@TRAPS(absent=("S101", "S102"))
def depthwise_on_a_zero_channel():
    """Two channels of the batch are zero: their depthwise outputs agree, on this batch."""
    batch = torch.randn(8, 4, 8, 8)
    batch[:, 2:] = 0.0
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), nn.Conv2d(4, 8, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    return model, batch, classify(8, 4)


@TRAPS()
def sample_that_is_all_padding():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(30, 16, padding_idx=0)
            self.rnn, self.head = nn.GRU(16, 16, batch_first=True), nn.Linear(16, 3)

        def forward(self, tokens):
            mask = (tokens != 0).unsqueeze(-1)
            out = self.rnn(self.embed(tokens))[0] * mask
            return self.head(out.sum(1) / mask.sum(1).clamp(min=1))

    tokens = torch.randint(1, 30, (6, 8))
    tokens[1] = 0
    tokens[4, 5:] = 0
    return Net(), tokens, classify(6, 3)


@TRAPS(absent=("P207",))
def identical_samples():
    """The batch, not the model, is the reason why all samples look the same."""
    return mlp(20, 32, 32, 5), torch.randn(1, 20).repeat(16, 1), classify(16, 5)


@TRAPS(absent=("P207",))
def batch_of_ones():
    """`torch.ones`, the habitual stand-in for data."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    return model, torch.ones(2, 3, 8, 8), classify(2, 4)


@TRAPS()
def batch_of_zeros():
    return mlp(20, 32, 32, 5), torch.zeros(8, 20), classify(8, 5)


@TRAPS()
def batch_of_large_integers():
    """Raw pixel values, 0 to 255, and a batch norm that takes them."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    return model, torch.randint(0, 256, (8, 3, 8, 8)).float(), classify(8, 4)


@TRAPS(absent=("S101", "S102", "P207"))
def batch_of_one():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    return model, torch.randn(1, 3, 8, 8), classify(1, 4)


@TRAPS()
def batch_norm_with_two_samples():
    """Two samples: every normalised value is ±1."""
    model = nn.Sequential(
        nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 5),
    )  # fmt: skip
    return model, torch.randn(2, 20), classify(2, 5)


@TRAPS(absent=("S101", "S103"))
def biases_that_tell_equal_weights_apart_behind_a_frozen_batch_norm():
    """What the norm remembers is the same for all units, so it leaves each its bias."""
    model = nn.Sequential(
        nn.Linear(8, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(),
        nn.Linear(24, 4),
    )  # fmt: skip
    nn.init.constant_(model[0].weight, 0.2)
    return model.eval(), torch.randn(64, 8), classify(64, 4)


@TRAPS(absent=("S101", "S103"))
def biases_that_tell_equal_weights_apart_beside_a_batch_norm():
    """The norm takes them away, and a way around it does not."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Linear(8, 24), nn.BatchNorm1d(24)
            self.head = nn.Linear(24, 4)
            nn.init.constant_(self.first.weight, 0.2)

        def forward(self, x):
            x = self.first(x)
            return self.head(torch.relu(x + self.norm(x)))

    return Net(), torch.randn(64, 8), classify(64, 4)


@TRAPS(absent=("S101", "S102"))
def batch_norm_in_eval_mode():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    return model.eval(), torch.randn(8, 3, 8, 8), classify(8, 4)


@TRAPS(absent=("S101", "S102"))
def dropout_of_one_half():
    model = nn.Sequential(
        nn.Dropout(0.5), nn.Linear(20, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 64),
        nn.ReLU(),
        nn.Dropout(0.5), nn.Linear(64, 5),
    )  # fmt: skip
    return model, torch.randn(32, 20), classify(32, 5)


@TRAPS(absent=("S101", "S102"))
def dropout_with_a_zero_head():
    """Random forwards, and candidates for the virtual steps."""
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 5))
    zero_(model[-1])
    return model, torch.randn(32, 20), classify(32, 5)


@TRAPS()
def layer_drop():
    """Stochastic depth draws from Python's generator: a whole block may be missing."""
    import random

    class Drop(nn.Module):
        def __init__(self, *body):
            super().__init__()
            self.body = nn.Sequential(*body)

        def forward(self, x):
            if self.training and random.random() < 0.3:
                return x
            return x + self.body(x)

    model = nn.Sequential(
        nn.Linear(10, 24), *(Drop(nn.Linear(24, 24), nn.GELU()) for _ in range(6)), nn.Linear(24, 4)
    )
    return model, torch.randn(32, 10), classify(32, 4)


# ── layers that look ill ─────────────────────────────────────────────────────────────────────


@TRAPS(absent=("S101", "S102"))
def depthwise_convolutions():
    from zoo.healthy import mobilenet

    return mobilenet()


@TRAPS(absent=("S101", "S102", "S104"))
def prelu_scalars():
    """All slopes start at ¼, one per channel: equal, and fine."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Conv2d(8, 8, 3), nn.PReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 16), nn.PReLU(16), nn.Linear(16, 4),
    )  # fmt: skip
    return model, torch.randn(8, 3, 10, 10), classify(8, 4)


@TRAPS(absent=("S101", "S102"))
def logistic_regression_at_zero():
    from zoo.healthy import logistic_regression_at_zero as build

    return build()


@TRAPS(absent=("S101", "S102"))
def softmax_regression_at_zero():
    """Convex as well, with several outputs."""
    model = nn.Linear(20, 5)
    zero_(model)
    return model, torch.randn(32, 20), classify(32, 5)


@TRAPS(absent=("S101", "S102"))
def linear_regression_at_zero():
    model = nn.Linear(7, 3)
    zero_(model)
    return model, torch.randn(32, 7), regress(32, 3)


@TRAPS(absent=("S101", "S102", "P203"))
def default_lenet_with_sigmoids():
    """Three sigmoid layers at PyTorch's defaults: slow, and it trains."""
    return mlp(20, 30, 30, 5, act=nn.Sigmoid), torch.randn(32, 20), classify(32, 5)


@TRAPS(thread="pytorch#18182", absent=("P201", "P207"))
def default_relu_net_of_ordinary_depth():
    return mlp(20, 256, 256, 256, 256, 5), torch.randn(64, 20), classify(64, 5)


@TRAPS()
def residual_net_without_norms_from_a_high_loss():
    """The signal doubles its energy in each of 16 blocks: a loss of 50 nats, and it trains."""
    body = (blocks.Residual(nn.Linear(32, 32), nn.ReLU()) for _ in range(16))
    model = nn.Sequential(nn.Linear(10, 32), *body, nn.Linear(32, 5))
    for layer in model[1:-1]:
        nn.init.normal_(layer.body[0].weight, std=math.sqrt(1 / 32))
    return model, torch.randn(64, 10), classify(64, 5)


@TRAPS(absent=("P201", "P203"))
def small_start_under_norms():
    """Std 0.02 everywhere: a small signal that each norm restores."""
    layers = []
    for _ in range(10):
        layers += [nn.Linear(48, 48, bias=False), nn.LayerNorm(48), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(48, 4))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
    return model, torch.randn(32, 48), classify(32, 4)


@TRAPS(absent=("P205",))
def some_dead_units():
    """A few units whose bias keeps them off on this batch."""
    model = mlp(20, 64, 64, 5)
    with torch.no_grad():
        model[0].bias[:4] = -20.0
    return model, torch.randn(32, 20), classify(32, 5)


@TRAPS(absent=("P205", "S102"))
def gelu_units_in_their_small_tail():
    """Pre-activations around −3, where slope and output are a hundredth and alive."""
    body = nn.LayerNorm(16), nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)
    model = nn.Sequential(nn.Linear(10, 16), blocks.Residual(*body), nn.Linear(16, 4))
    nn.init.constant_(body[1].bias, -3.0)
    return model, torch.randn(40, 10), classify(40, 4)


@TRAPS(absent=("P205", "S102"))
def softplus_of_a_small_step():
    """Mamba's step sizes start at 1e-3 to 1e-1: biases of −7 to −2."""
    model = mlp(10, 32, 32, 4, act=nn.Softplus)
    with torch.no_grad():
        model[2].bias.uniform_(-7.0, -2.0)
    return model, torch.randn(40, 10), classify(40, 4)


@TRAPS()
def half_of_the_units_are_dead():
    model = mlp(20, 64, 5)
    with torch.no_grad():
        model[0].bias[:32] = -20.0
    return model, torch.randn(32, 20), classify(32, 5)


@TRAPS(absent=("P206",))
def gates_that_start_closed():
    from zoo.healthy import highway

    return highway()


def _shut_gate(offset):
    """A branch behind a sigmoid that an offset of its own shuts (or opens), beside a residual."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.body, self.head = (nn.Linear(16, n) for n in (16, 16, 3))

        def forward(self, x):
            return self.head(x + torch.sigmoid(self.gate(x) + offset) * torch.tanh(self.body(x)))

    return Net(), torch.randn(64, 16), classify(64, 3)


@TRAPS(absent=("P206",))
def gate_shut_by_an_offset():
    return _shut_gate(-8.0)


@TRAPS(absent=("P206",))
def gate_opened_by_an_offset():
    return _shut_gate(8.0)


@TRAPS(absent=("P206",))
def relu_network_of_large_states():
    """A recurrent layer of ReLU has no flat part above."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.RNN(6, 24, nonlinearity="relu", batch_first=True)
            self.cell, self.norm = nn.RNNCell(24, 24, nonlinearity="relu"), nn.LayerNorm(24)
            self.head = nn.Linear(24, 3)
            with torch.no_grad():
                self.rnn.weight_ih_l0.mul_(100)

        def forward(self, x):
            return self.head(self.norm(self.cell(self.rnn(x)[0][:, -1])))

    return Net(), torch.randn(32, 9, 6), classify(32, 3)


@TRAPS(absent=("S102",))
def rounding_that_the_gradient_goes_around():
    """A straight-through estimator."""
    act = blocks.Lambda(lambda x: x + (x.round() - x).detach())
    return mlp(20, 64, 3, act=lambda: act), torch.randn(64, 20), classify(64, 3)


@TRAPS(absent=("S102",))
def auxiliary_loss_of_weight_zero():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head, self.aux = nn.Linear(20, 64), nn.Linear(64, 3), nn.Linear(64, 7)

        def forward(self, x):
            x = self.body(x).relu()
            return self.head(x), self.aux(x)

    labels = torch.randint(0, 3, (64,))

    def loss(out):
        return F.cross_entropy(out[0], labels) + 0.0 * out[1].square().mean()

    return Net(), torch.randn(64, 20), loss


@TRAPS(absent=("P203", "P207", "P201"))
def constant_head_behind_a_norm():
    """Its cotangent cancels behind a softmax, and that in the norm once more: rounding is left."""
    model = nn.Sequential(*mlp(20, 48, 48), nn.LayerNorm(48), nn.Linear(48, 10))
    nn.init.constant_(model[-1].weight, 0.1)
    return model, torch.randn(64, 20), classify(64, 10)


@TRAPS(absent=("P207", "S102"))
def two_zero_heads_that_are_summed():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.a, self.b = mlp(20, 64), nn.Linear(64, 10), nn.Linear(64, 10)
            nn.init.zeros_(self.a.weight)
            nn.init.zeros_(self.b.weight)

        def forward(self, x):
            h = self.body(x).relu()
            return self.a(h) + self.b(h)

    return Net(), torch.randn(64, 20), classify(64, 10)


@TRAPS(absent=("P207", "S102"))
def word2vec_from_its_published_start():
    """Mikolov 2013: small input vectors, output vectors of zero."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Embedding(100, 16), nn.Embedding(100, 16)
            nn.init.uniform_(self.inner.weight, -0.5 / 16, 0.5 / 16)
            nn.init.zeros_(self.outer.weight)

        def forward(self, word, near, far):
            word = self.inner(word)
            found = F.logsigmoid((word * self.outer(near)).sum(-1))
            missed = F.logsigmoid(-(word[:, None] * self.outer(far)).sum(-1)).sum(-1)
            return -(found + missed).mean()

    batch = (torch.randint(0, 100, (256,)), torch.randint(0, 100, (256,)))
    return Net(), (*batch, torch.randint(0, 100, (256, 5))), lambda out: out


def _faint_layer(place, times):
    model = mlp(20, 48, 48, 10)
    with torch.no_grad():
        model[place].weight.mul_(times)
    return model, torch.randn(64, 20), classify(64, 10)


@TRAPS(absent=("P207",))
def head_next_to_zero():
    return _faint_layer(4, 1e-6)


@TRAPS(absent=("P207",))
def hidden_layer_next_to_zero():
    """It trains as from zero."""
    return _faint_layer(2, 1e-6)


@TRAPS(absent=("P207",))
def head_of_a_graph_network_next_to_zero():
    """A(XW) + b: the edges are given as well, and are multiplied with what is next to nothing."""
    return blocks.graph_network(1.0, 1e-4)


@TRAPS(absent=("P207",))
def layer_of_a_graph_network_next_to_zero():
    return blocks.graph_network(1e-6, 1.0)


@TRAPS(absent=("P207",))
def output_bias_at_the_mean_of_the_target():
    model, batch = mlp(20, 64, 1), torch.randn(64, 20)
    nn.init.constant_(model[2].bias, 3e5)
    target = 3e5 + 100 * batch[:, :1]
    return model, batch, lambda out: F.mse_loss(out, target)


@TRAPS(absent=("S101",))
def transition_scores_of_a_crf():
    """Numbers that an index picks: what differs there are samples, no units."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.score = nn.Embedding(50, 16), nn.Linear(16, 5)
            self.first = nn.Parameter(0.1 * torch.rand(5))
            self.next = nn.Parameter(0.1 * torch.rand(5, 5))

        def forward(self, tokens):
            scores, tags = self.score(self.embed(tokens)), tokens % 5
            alpha = self.first + scores[:, 0]
            for i in range(1, tokens.shape[1]):
                alpha = torch.logsumexp(alpha[:, :, None] + self.next, 1) + scores[:, i]
            path = self.first[tags[:, 0]] + self.next[tags[:, :-1], tags[:, 1:]].sum(1)
            path = path + scores.gather(2, tags[..., None]).squeeze(-1).sum(1)
            return (torch.logsumexp(alpha, 1) - path).mean()

    return Net(), torch.randint(0, 50, (8, 16)), lambda out: out


@TRAPS(absent=("S101",))
def zero_head_in_data_parallel():
    model = mlp(20, 32, 10)
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    return nn.DataParallel(model), torch.randn(64, 20), classify(64, 10)


@TRAPS(absent=("P205",))
def penalty_on_large_outputs():
    """A clamp in the loss is no activation of the model."""
    labels = torch.randint(0, 3, (64,))

    def loss(out):
        return F.cross_entropy(out, labels) + (out - 40).clamp(min=0).square().mean()

    return mlp(20, 64, 3), torch.randn(64, 20), loss


@TRAPS(absent=("P205",))
def penalty_inside_of_the_model():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(20, 64), nn.Linear(64, 3)

        def forward(self, x):
            h = self.a(x)
            return self.b(h.tanh()), (h - 60).clamp(min=0).square().mean()

    labels = torch.randint(0, 3, (64,))
    return Net(), torch.randn(64, 20), lambda out: F.cross_entropy(out[0], labels) + out[1]


@TRAPS(absent=("S101", "S102"))
def matrices_that_relations_pick():
    """RESCAL: a matrix for each relation, picked for each triple."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.entity = nn.Embedding(20, 8)
            self.relation = nn.Parameter(torch.randn(5, 8, 8) / 3)

        def forward(self, head, relation, tail):
            moved = torch.bmm(self.entity(head)[:, None], self.relation[relation])
            return (moved.squeeze(1) * self.entity(tail)).sum(1)

    batch = tuple(torch.randint(0, n, (64,)) for n in (20, 5, 20))
    return Net(), batch, lambda out: F.binary_cross_entropy_with_logits(out, torch.ones(64))


@TRAPS(absent=("S102",))
def router_of_equal_experts():
    """Its softmax gets a gradient that is the same for all of them; dropout parts them later."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inlet, self.router = nn.Linear(20, 32), nn.Linear(32, 2)
            self.experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
            self.experts[1].load_state_dict(self.experts[0].state_dict())
            self.head = nn.Linear(32, 3)

        def forward(self, x):
            x = self.inlet(x).relu()
            share = self.router(x).softmax(-1)
            made = [share[:, i : i + 1] * expert(x) for i, expert in enumerate(self.experts)]
            return self.head(sum(made))

    return Net(), torch.randn(64, 20), classify(64, 3)


@TRAPS()
def activations_with_arguments_that_torch_allows():
    acts = (
        lambda x: F.hardtanh(x, -float("inf"), 1.0), nn.CELU(-1.0), lambda x: F.softplus(x, -1.0),
        lambda x: F.threshold(x, -float("inf"), 0.0), lambda x: x.clamp(0, float("inf")),
    )  # fmt: skip
    layers = [m for act in acts for m in (nn.Linear(16, 16), blocks.Lambda(act))]
    return nn.Sequential(*layers, nn.Linear(16, 3)), torch.randn(64, 16), classify(64, 3)


@TRAPS()
def generator_of_the_systems_own():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.random, self.body = random.SystemRandom(), mlp(16, 32, 3)

        def forward(self, x):
            return self.body(x)

    return Net(), torch.randn(32, 16), classify(32, 3)


@TRAPS(absent=("P206", "P205"))
def relu6_in_its_middle():
    """torch calls nn.ReLU6 a hardtanh; biases of 3 keep its units between 0 and 6."""
    model = mlp(16, 64, 64, 3, act=nn.ReLU6)
    nn.init.constant_(model[0].bias, 3.0)
    nn.init.constant_(model[2].bias, 3.0)
    return model, torch.randn(64, 16), classify(64, 3)


@TRAPS(absent=("P206",))
def hardtanh_with_far_bounds():
    model = mlp(16, 64, 64, 3, act=lambda: nn.Hardtanh(-20.0, 20.0))
    for layer in model[:4:2]:
        nn.init.normal_(layer.weight, std=3 / layer.in_features**0.5)
    return model, torch.randn(64, 16), classify(64, 3)


@TRAPS(absent=("P205",))
def softplus_that_is_wide():
    """softplus(β = 0.2) is flat below −80 alone."""
    model = mlp(16, 64, 3, act=lambda: nn.Softplus(beta=0.2))
    nn.init.constant_(model[0].bias, -25.0)
    return model, torch.randn(64, 16), classify(64, 3)


@TRAPS(absent=("P206",))
def sharp_attention():
    """A softmax that is almost one-hot is no saturated layer."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.keys, self.values = (
                nn.Parameter(torch.randn(12, 8)),
                nn.Parameter(torch.randn(12, 8)),
            )
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            return self.head((4 * x @ self.keys.t() / math.sqrt(8)).softmax(-1) @ self.values)

    return Net(), torch.randn(32, 8), classify(32, 3)


@TRAPS(absent=("P207",))
def branches_that_do_not_see_the_sample():
    """Learned queries and positions are the same for each sample, as meant."""
    from zoo.healthy import detection_with_queries

    return detection_with_queries()


@TRAPS(absent=("P207",))
def hypernetwork_codes():
    from zoo.healthy import hypernetwork

    return hypernetwork()


@TRAPS(absent=("P207",))
def output_that_is_constant_by_its_head():
    """A zero head makes all outputs equal; the layers before it tell the samples apart."""
    model = mlp(20, 32, 32, 5, act=nn.GELU)
    zero_(model[-1])
    return model, torch.randn(32, 20), classify(32, 5)


@TRAPS(absent=("N404",))
def large_signals_in_float32():
    """1e5 is no matter where float32 is kept."""
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.LayerNorm(32), nn.Linear(32, 4))
    with torch.no_grad():
        model[0].weight.mul_(3e5)
    return model, torch.randn(32, 20), classify(32, 4)


@TRAPS(absent=("N404",), options={"dtype": "float16"})
def ordinary_signals_in_float16():
    return mlp(20, 64, 64, 5), torch.randn(32, 20), classify(32, 5)


@TRAPS(absent=("N404",), options={"dtype": "bfloat16"})
def large_signals_in_bfloat16():
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.LayerNorm(32), nn.Linear(32, 4))
    with torch.no_grad():
        model[0].weight.mul_(3e5)
    return model, torch.randn(32, 20), classify(32, 4)


@TRAPS(absent=("N403", "N404"))
def minus_infinity_in_masks():
    """−inf before a softmax, in a buffer and by masked_fill: that is how masks are written."""

    class Net(nn.Module):
        def __init__(self, n=24, t=7):
            super().__init__()
            self.register_buffer("mask", torch.full((t, t), float("-inf")).triu(1))
            self.inlet, self.q, self.k, self.v = (nn.Linear(m, n) for m in (6, n, n, n))
            self.head = nn.Linear(n, 3)

        def forward(self, x):
            x = self.inlet(x)
            scores = self.q(x) @ self.k(x).transpose(1, 2) / math.sqrt(24) + self.mask
            scores = scores.masked_fill(torch.arange(7) > 5, float("-inf"))
            return self.head((scores.softmax(-1) @ self.v(x)).mean(1))

    return Net(), torch.randn(8, 7, 6), classify(8, 3)


@TRAPS(absent=("N403", "N404"), options={"dtype": "float16"})
def finfo_min_in_masks():
    class Net(nn.Module):
        def __init__(self, n=24):
            super().__init__()
            self.inlet, self.qkv, self.head = nn.Linear(6, n), nn.Linear(n, 3 * n), nn.Linear(n, 3)

        def forward(self, x):
            q, k, v = self.qkv(self.inlet(x)).chunk(3, -1)
            scores = q @ k.transpose(1, 2) / math.sqrt(24)
            mask = torch.ones(7, 7, dtype=torch.bool).triu(1)
            scores = scores.masked_fill(mask, torch.finfo(scores.dtype).min)
            return self.head((scores.softmax(-1) @ v).mean(1))

    return Net(), torch.randn(8, 7, 6), classify(8, 3)


@TRAPS(absent=("N403",))
def nan_that_is_masked_away():
    """A running log-sum whose −inf never reaches the loss."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = mlp(10, 24, 5)

        def forward(self, x):
            logits = self.head(x)
            blank = torch.full_like(logits[:, :1], float("-inf"))
            return torch.cat([logits, blank], -1)

    return Net(), torch.randn(16, 10), classify(16, 5)


@TRAPS(absent=("N401", "N402"))
def nan_in_an_unread_buffer():
    """A statistic nobody has written yet: it is no parameter, and no signal reads it."""
    model = mlp(10, 24, 5)
    model.register_buffer("best", torch.tensor(float("nan")))
    model.register_buffer("lowest", torch.full((4,), float("inf")))
    return model, torch.randn(16, 10), classify(16, 5)


@TRAPS(absent=("N402",))
def weights_with_a_wide_range():
    """Log-uniform decay rates over six orders of magnitude: written on purpose."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(10 ** torch.empty(24).uniform_(-4, 2))
            self.inlet, self.head = nn.Linear(10, 24), nn.Linear(24, 4)

        def forward(self, x):
            return self.head(self.inlet(x) * torch.exp(-self.rate))

    return Net(), torch.randn(16, 10), classify(16, 4)


@TRAPS(thread="transformers#40796")
def one_plus_gamma_norm_started_at_one():
    """Every norm doubles its output: odd, and it trains."""

    class Norm(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(n))

        def forward(self, x):
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)

    def block():
        return blocks.Residual(Norm(24), nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))

    model = nn.Sequential(nn.Linear(10, 24), block(), block(), block(), Norm(24), nn.Linear(24, 4))
    return model, torch.randn(32, 10), classify(32, 4)


@TRAPS(thread="cleanrl#358")
def orthogonal_over_fused_gates():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(6, 24, batch_first=True), nn.Linear(24, 3)
            for name, parameter in self.rnn.named_parameters():
                if "weight" in name:
                    nn.init.orthogonal_(parameter)
                else:
                    nn.init.zeros_(parameter)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    return Net(), torch.randn(12, 9, 6), classify(12, 3)


@TRAPS(absent=("W502",))
def packed_projections_drawn_by_their_own_fan():
    """qkv at PyTorch's default looks at fan_in only, so packing does not matter."""
    model = nn.Sequential(
        nn.Linear(6, 24), blocks.Block(24, 4), blocks.Lambda(lambda x: x.mean(1)), nn.Linear(24, 3)
    )
    return model, torch.randn(8, 7, 6), classify(8, 3)


@TRAPS(absent=("W502",))
def packed_projections_drawn_block_by_block():
    attention = blocks.Attention(48, 4)
    for block in attention.qkv.weight.data.chunk(3):
        nn.init.xavier_uniform_(block)
    nn.init.zeros_(attention.qkv.bias)
    model = nn.Sequential(
        blocks.Residual(attention), blocks.Lambda(lambda x: x.mean(1)), nn.Linear(48, 3)
    )
    return model, torch.randn(8, 7, 48), classify(8, 3)


@TRAPS(absent=("W502",))
def packed_projections_at_a_std_set_by_hand():
    """N(0, 0.1) at width 50 has the std of Xavier over [3n, n], but nobody meant Xavier."""
    attention = blocks.Attention(50, 5)
    nn.init.normal_(attention.qkv.weight, std=0.1)
    nn.init.zeros_(attention.qkv.bias)
    model = nn.Sequential(
        blocks.Residual(attention), blocks.Lambda(lambda x: x.mean(1)), nn.Linear(50, 3)
    )
    return model, torch.randn(8, 7, 50), classify(8, 3)


@TRAPS(absent=("W502",))
def wide_layer_that_is_not_packed():
    """Xavier over [3n, n], and nobody splits the output."""
    model = mlp(48, 144, 4)
    nn.init.xavier_uniform_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    return model, torch.randn(32, 48), classify(32, 4)


@TRAPS(absent=("W503", "W505"))
def truncation_at_two_sigma():
    model = mlp(64, 128, 128, 4, act=nn.GELU)
    for layer in model[::2]:
        nn.init.trunc_normal_(layer.weight, std=0.05, a=-0.1, b=0.1)
    return model, torch.randn(32, 64), classify(32, 4)


@TRAPS(absent=("W503", "W505"))
def plain_normal_weights():
    model = mlp(64, 128, 128, 4, act=nn.GELU)
    for layer in model[::2]:
        nn.init.normal_(layer.weight, std=0.1)
    return model, torch.randn(32, 64), classify(32, 4)


@TRAPS(absent=("W505",))
def uniform_and_binary_weights():
    """Many entries near, or at, the largest: a bound, but no outliers."""
    model = mlp(64, 128, 128, 4)
    nn.init.uniform_(model[0].weight, -0.2, 0.2)
    with torch.no_grad():
        model[2].weight.copy_(torch.randn(128, 128).sign() * 0.1)
    return model, torch.randn(32, 64), classify(32, 4)


@TRAPS(absent=("W501", "S104"))
def parameters_in_lists_and_dicts():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.ParameterList(
                nn.Parameter(torch.randn(12, 12) / 3.5) for _ in range(3)
            )
            self.scales = nn.ParameterDict(
                {"a": nn.Parameter(torch.ones(12)), "b": nn.Parameter(torch.zeros(12))}
            )
            self.heads = nn.ModuleDict({"x": nn.Linear(12, 3)})

        def forward(self, x):
            for weight in self.weights:
                x = torch.tanh(x @ weight)
            return self.heads["x"](x * self.scales["a"] + self.scales["b"])

    return Net(), torch.randn(16, 12), classify(16, 3)


# ── losses that look ill ─────────────────────────────────────────────────────────────────────


@TRAPS(absent=("O301",))
def cross_entropy_that_is_summed():
    labels = torch.randint(0, 5, (64,))
    return (
        mlp(20, 32, 5),
        torch.randn(64, 20),
        lambda out: F.cross_entropy(out, labels, reduction="sum"),
    )


@TRAPS(absent=("O301",))
def regression_of_large_targets():
    target = torch.randn(32, 1) * 1000 + 5000
    return mlp(20, 32, 1), torch.randn(32, 20), lambda out: F.mse_loss(out, target)


@TRAPS(absent=("O301",))
def sum_of_several_losses():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.a, self.b = mlp(20, 32, 32), nn.Linear(32, 3), nn.Linear(32, 7)

        def forward(self, x):
            h = self.trunk(x).relu()
            return self.a(h), self.b(h)

    first, second = torch.randint(0, 3, (32,)), torch.randint(0, 7, (32,))
    return (
        Net(),
        torch.randn(32, 20),
        lambda out: 3 * F.cross_entropy(out[0], first) + 2 * F.cross_entropy(out[1], second),
    )


@TRAPS(absent=("O301",))
def weighted_and_smoothed_cross_entropy():
    labels, weight = torch.randint(0, 5, (64,)), torch.tensor([1.0, 20.0, 5.0, 0.1, 1.0])
    return (
        mlp(20, 32, 5),
        torch.randn(64, 20),
        lambda out: F.cross_entropy(out, labels, weight=weight, label_smoothing=0.1),
    )


@TRAPS()
def loss_that_ignores_most_labels():
    tokens = torch.randint(0, 101, (4, 12))
    labels = tokens.clone()
    labels[:, 2:] = -100
    return (
        blocks.LanguageModel(),
        tokens,
        lambda out: F.cross_entropy(out.flatten(0, 1), labels.flatten(), ignore_index=-100),
    )


@TRAPS()
def loss_that_is_negative():
    return mlp(10, 24, 6), torch.randn(16, 10), lambda out: -F.normalize(out, dim=-1).std(0).mean()


@TRAPS()
def negative_log_likelihood_of_probabilities():
    """Softmax inside the model, log and NLL outside."""
    labels = torch.randint(0, 5, (32,))
    model = nn.Sequential(*mlp(20, 32, 5), nn.Softmax(-1))
    return model, torch.randn(32, 20), lambda out: F.nll_loss(out.clamp_min(1e-9).log(), labels)


# ── code that is hard to watch ───────────────────────────────────────────────────────────────


@TRAPS(absent=("S101", "S102"))
def state_in_float32_written_into_the_forward():
    """A zero head asks for virtual steps in float64, and the forward makes float32 tensors."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.step, self.state, self.head = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)
            zero_(self.head)

        def forward(self, x):
            h = torch.zeros(len(x), 16)
            for t in range(x.shape[1]):
                h = torch.tanh(self.step(x[:, t].float()) + self.state(h))
            return self.head(h)

    return Net(), torch.randn(12, 5, 6), classify(12, 3)


@TRAPS(absent=("S101", "S102"))
def model_that_cannot_be_copied():
    """A lock, a generator and a non-leaf tensor among its attributes, and a zero head."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lock, self.stream = threading.Lock(), iter(range(3))
            self.a, self.head = nn.Linear(6, 16), nn.Linear(16, 3)
            self.cached = self.a.weight * 2
            zero_(self.head)

        def forward(self, x):
            with self.lock:
                return self.head(self.a(x).relu())

    return Net(), torch.randn(12, 6), classify(12, 3)


@TRAPS(absent=("S101", "S102"))
def old_weight_norm_under_a_zero_head():
    """The hook of torch.nn.utils.weight_norm leaves a non-leaf tensor behind."""
    from zoo.healthy import normed

    model, batch, loss = normed(nn.utils.weight_norm)()
    zero_(model[-1])
    return model, batch, loss


@TRAPS(absent=("S101", "S102"))
def spectral_norm_under_a_zero_head():
    from zoo.healthy import normed

    model, batch, loss = normed(nn.utils.parametrizations.spectral_norm)()
    zero_(model[-1])
    return model, batch, loss


@TRAPS()
def gradient_checkpointing():
    from torch.utils.checkpoint import checkpoint

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(blocks.Block(24, 4) for _ in range(2))
            self.head = nn.Linear(24, 3)

        def forward(self, x):
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=False)
            return self.head(x.mean(1))

    return Net(), torch.randn(6, 7, 24), classify(6, 3)


@TRAPS()
def own_autograd_function():
    """A straight-through estimator, whose backward is not the derivative of its forward."""

    class Sign(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.sign()

        @staticmethod
        def backward(ctx, grad):
            return grad * (ctx.saved_tensors[0].abs() <= 1)

    model = nn.Sequential(nn.Linear(20, 48), blocks.Lambda(Sign.apply), nn.Linear(48, 5))
    return model, torch.randn(32, 20), classify(32, 5)


@TRAPS()
def gradient_inside_the_forward():
    """An energy model: the forward differentiates, and the loss differentiates again."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.energy = mlp(6, 32, 32, 1, act=nn.Softplus)

        def forward(self, x):
            with torch.enable_grad():
                x = x.detach().requires_grad_(True)
                return torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0]

    return Net(), torch.randn(24, 6), regress(24, 6)


@TRAPS()
def autocast_inside_the_forward():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp(20, 48, 48, 5)

        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                x = self.net(x)
            return x.float()

    return Net(), torch.randn(32, 20), classify(32, 5)


@TRAPS()
def views_and_in_place_writes():
    """Outputs written into slices of one tensor, and added to in place."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Linear(10, 8), nn.Linear(10, 8), nn.Linear(16, 3)

        def forward(self, x):
            out = x.new_zeros(len(x), 16)
            out[:, :8] = self.a(x)
            out[:, 8:].add_(self.b(x))
            out.clamp_(min=-5).tanh_()
            return self.head(out.view(2, -1, 16).flatten(0, 1))

    return Net(), torch.randn(16, 10), classify(16, 3)


@TRAPS()
def functional_call_inside_the_forward():
    """MAML: an inner step on the weights, through torch.func."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp(5, 24, 2, act=nn.Tanh)

        def forward(self, support, goal, query):
            weights = dict(self.net.named_parameters())
            error = F.mse_loss(torch.func.functional_call(self.net, weights, (support,)), goal)
            steps = torch.autograd.grad(error, tuple(weights.values()), create_graph=True)
            moved = {name: w - 0.1 * g for (name, w), g in zip(weights.items(), steps, strict=True)}
            return torch.func.functional_call(self.net, moved, (query,))

    batch = (torch.randn(8, 5), torch.randn(8, 2), torch.randn(9, 5))
    return Net(), batch, regress(9, 2)


@TRAPS()
def outputs_in_a_dataclass():
    from dataclasses import dataclass

    @dataclass
    class Out:
        logits: torch.Tensor
        hidden: list[torch.Tensor]
        steps: int

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(10, 24), nn.Linear(24, 3)

        def forward(self, x):
            h = self.a(x).tanh()
            return Out(self.b(h), [h], 1)

    return Net(), torch.randn(16, 10)


@TRAPS()
def nested_outputs_without_a_loss():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(10, 24), nn.Linear(24, 3), nn.Linear(24, 2)

        def forward(self, x):
            h = self.a(x).tanh()
            return {"one": [self.b(h), None, "text"], "two": (self.c(h), h.argmax(-1)), "three": 3}

    return Net(), torch.randn(16, 10)


@TRAPS()
def nested_batch():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.head = nn.Linear(10, 24), nn.Linear(24, 3)

        def forward(self, sides, *, scale=1.0, flags=None):
            return self.head(sum(self.a(side["x"]) for side in sides).relu() * scale)

    batch = {
        "sides": [{"x": torch.randn(16, 10)}, {"x": torch.randn(16, 10)}],
        "scale": 0.5,
        "flags": None,
    }
    return Net(), batch, classify(16, 3)


@TRAPS()
def parameters_under_several_dtypes():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(10, 24).bfloat16(), nn.Linear(24, 3).double()

        def forward(self, x):
            return self.b(self.a(x.bfloat16()).relu().double())

    return Net(), torch.randn(16, 10)


@TRAPS()
def batch_that_asks_for_its_gradient():
    batch = torch.randn(16, 10).requires_grad_()
    batch.grad = torch.randn(16, 10)
    return mlp(10, 24, 3), batch, classify(16, 3)


@TRAPS()
def gradients_that_are_already_there():
    model = mlp(10, 24, 3)
    for number, parameter in enumerate(model.parameters()):
        if number != 1:
            parameter.grad = torch.randn_like(parameter)
    return model, torch.randn(16, 10), classify(16, 3)


@TRAPS()
def hooks_of_every_kind():
    model = mlp(10, 24, 24, 3)
    model[0].register_forward_hook(lambda module, args, out: out * 1.5)
    model[0].register_forward_pre_hook(lambda module, args: (args[0] + 0.1,))
    model[2].register_full_backward_hook(lambda module, grad_in, grad_out: None)
    model[2].register_full_backward_pre_hook(lambda module, grad_out: None)
    model[4].register_forward_hook(lambda module, args, kwargs, out: out, with_kwargs=True)
    model.register_state_dict_post_hook(lambda *args: None)
    model[0].weight.register_hook(lambda grad: grad * 2)
    model[2].weight.register_post_accumulate_grad_hook(lambda parameter: None)
    return model, torch.randn(16, 10), classify(16, 3)


# ── losses, targets and layouts that look like faults ────────────────────────────────────────


@TRAPS(absent=("P202",))
def small_regression_target():
    target = torch.randn(64, 1) * 0.003
    return mlp(20, 64, 64, 1), torch.randn(64, 20), lambda out: F.mse_loss(out, target)


@TRAPS(absent=("P206",))
def sigmoid_head_with_the_prior_of_a_rare_class():
    model = nn.Sequential(*mlp(10, 64, 3), nn.Sigmoid())
    nn.init.constant_(model[2].bias, -6.0)
    return model, torch.randn(64, 10), lambda o: F.binary_cross_entropy(o, torch.zeros(64, 3))


@TRAPS(absent=("P204",))
def global_pooling_over_a_long_signal():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv1d(1, 16, 9, padding=4), nn.Conv1d(16, 16, 9, padding=4)
            self.out = nn.Linear(16, 4)

        def forward(self, x):
            return self.out(self.b(self.a(x).relu()).relu().mean(2))

    return Net(), torch.randn(4, 1, 8000), lambda out: F.cross_entropy(out, torch.arange(4))


@TRAPS(absent=("P204",))
def periodic_features_with_the_features_first():
    """Most of what cosines of small angles give is the same for all samples, and is no signal."""

    class Periodic(nn.Module):
        def __init__(self):
            super().__init__()
            self.rates = nn.Parameter(0.01 * torch.randn(8, 48))
            self.weight = nn.Parameter((torch.rand(8, 96, 24) * 2 - 1) / 96**0.5)

        def forward(self, x):
            angles = 2 * torch.pi * self.rates * x[..., None]
            waves = torch.cat([torch.cos(angles), torch.sin(angles)], -1)
            return (waves.transpose(0, 1) @ self.weight).transpose(0, 1).flatten(1)

    model = nn.Sequential(Periodic(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 1))
    targets = torch.randn(64, 1)
    return model, torch.randn(64, 8), lambda out: F.mse_loss(out, targets)


@TRAPS(absent=("P207",))
def output_bias_at_the_mean_of_the_targets():
    target = 1000 + torch.randn(64, 1)
    model = mlp(20, 64, 64, 1)
    nn.init.constant_(model[-1].bias, 1000.0)
    return model, torch.randn(64, 20), lambda out: F.mse_loss(out, target)


class Graph(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x, adjacency):
        return self.b(torch.sparse.mm(adjacency, self.a(x)).relu())


@TRAPS()
def sparse_adjacency():
    links = (torch.rand(20, 20) < 0.2).float()
    return Graph(), (torch.randn(20, 5), links.to_sparse())


class Checkpointed(nn.Module):
    """A zero head behind a checkpoint: virtual steps recompute what the checkpoint dropped."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.first, self.block, self.head = nn.Linear(16, 16), block, nn.Linear(16, 4)
        zero_(self.head)

    def _block(self, x):
        out = (
            self.block(x, x, x) if isinstance(self.block, nn.MultiheadAttention) else self.block(x)
        )
        return out[0] if isinstance(out, tuple) else out

    def forward(self, x):
        from torch.utils.checkpoint import checkpoint

        return self.head(checkpoint(self._block, self.first(x), use_reentrant=False))


@TRAPS(absent=("S101", "S102"))
def zero_head_behind_a_checkpointed_block():
    return Checkpointed(mlp(16, 32, 16)), torch.randn(8, 16)


@TRAPS(absent=("S101", "S102"))
def zero_head_behind_a_checkpointed_lstm():
    return Checkpointed(nn.LSTM(16, 16, 2, batch_first=True)), torch.randn(4, 5, 16)


@TRAPS(absent=("S101", "S102"))
def zero_head_behind_checkpointed_attention():
    return Checkpointed(nn.MultiheadAttention(16, 4, batch_first=True)), torch.randn(4, 5, 16)


# ── sums with one large term ─────────────────────────────────────────────────────────────────


class Spectral(nn.Module):
    """A spectral convolution: complex weights for each frequency, as in Fourier operators."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 16), nn.Linear(16, 2)
        self.modes = nn.Parameter(0.2 * torch.randn(16, 16, 9, dtype=torch.complex64))

    def forward(self, x):
        x = self.first(x)
        waves = torch.einsum("nti,iot->nto", torch.fft.rfft(x, dim=1), self.modes)
        return self.last((x + torch.fft.irfft(waves, n=16, dim=1)).relu())


@TRAPS(absent=("S101", "S102"))
def zero_head_behind_complex_weights():
    model = Spectral()
    nn.init.zeros_(model.last.weight)
    return model, torch.randn(8, 16, 4), lambda out: F.mse_loss(out, torch.ones_like(out))


class ClassToken(nn.Module):
    """A class token that two blocks of attention fill, each times a learned factor."""

    def __init__(self, factor: float):
        super().__init__()
        self.embed, self.token = nn.Linear(16, 32), nn.Parameter(0.02 * torch.randn(1, 1, 32))
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(3))
        self.attend = nn.ModuleList(
            nn.MultiheadAttention(32, 4, batch_first=True) for _ in range(2)
        )
        self.factors = nn.ParameterList(torch.full((32,), factor) for _ in range(2))
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        x = self.embed(x)
        token = self.token.expand(len(x), -1, -1)
        for norm, attend, factor in zip(self.norms, self.attend, self.factors, strict=False):
            both = norm(torch.cat([token, x], 1))
            token = token + factor * attend(both[:, :1], both, both, need_weights=False)[0]
        return self.head(self.norms[2](torch.cat([token, x], 1))[:, 0])


@TRAPS(absent=("P207",))
def class_token_filled_through_small_factors():
    return ClassToken(1e-6), torch.randn(32, 8, 16), classify(32, 4)


@TRAPS(absent=("P207",))
def class_token_filled_through_factors_of_zero():
    return ClassToken(0.0), torch.randn(32, 8, 16), classify(32, 4)


@TRAPS(absent=("P207",))
def class_token_of_a_vision_transformer():
    """The token stands beside the patches in every block, and is picked at the end."""

    class Vision(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.token = nn.Linear(16, 32), nn.Parameter(0.02 * torch.randn(1, 1, 32))
            self.places = nn.Parameter(0.02 * torch.randn(1, 9, 32))
            self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(3))
            self.attend = nn.ModuleList(
                nn.MultiheadAttention(32, 4, batch_first=True) for _ in range(3)
            )
            self.factors = nn.ParameterList(torch.full((32,), 1e-6) for _ in range(3))
            self.head = nn.Linear(32, 4)

        def forward(self, x):
            x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], 1) + self.places
            for norm, attend, factor in zip(self.norms, self.attend, self.factors, strict=True):
                both = norm(x)
                x = x + factor * attend(both, both, both, need_weights=False)[0]
            return self.head(x[:, 0])

    return Vision(), torch.randn(32, 8, 16), classify(32, 4)


class Gated(nn.Module):
    """A branch whose channels are weighed by what their means say (squeeze and excitation)."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.down, self.up = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)

    def forward(self, x):
        branch = self.last(self.conv(x).relu())
        gate = self.up(self.down(branch.mean((2, 3), keepdim=True)).relu())
        return x + branch * gate.sigmoid()


@TRAPS(absent=("P205",))
def gates_of_a_branch_that_starts_at_zero():
    """They are given zeros once; the layer before them moves at the first step."""
    body = [Gated() for _ in range(3)]
    for block in body:
        nn.init.zeros_(block.last.weight)
        nn.init.zeros_(block.last.bias)
        nn.init.zeros_(block.down.bias)
    stem = (nn.Conv2d(3, 16, 3, padding=1), nn.ReLU())
    model = nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    return model, torch.randn(8, 3, 12, 12), classify(8, 4)


@TRAPS(absent=("P208",))
def embedding_times_the_root_of_the_width():
    """A stream of 16 before norms, as in *Attention is all you need*."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(50, 256)

        def forward(self, tokens):
            return self.table(tokens) * 16

    body = [
        blocks.Residual(nn.LayerNorm(256), nn.Linear(256, 64), nn.GELU(), nn.Linear(64, 256))
        for _ in range(2)
    ]
    model = nn.Sequential(Scaled(), *body, nn.LayerNorm(256), nn.Linear(256, 50))
    tokens = torch.randint(0, 50, (8, 6))
    return model, tokens, lambda out: F.cross_entropy(out.flatten(0, 1), tokens.flatten())


@TRAPS(absent=("P208", "P202"))
def branch_whose_last_layer_is_thirty_times_as_large():
    """Four blocks with attention learn to repeat a sequence as fast as without it."""
    body = [
        blocks.Residual(nn.LayerNorm(64), nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
        for _ in range(4)
    ]
    with torch.no_grad():
        body[0].body[3].weight *= 30.0
    model = nn.Sequential(nn.Embedding(50, 64), *body, nn.LayerNorm(64), nn.Linear(64, 50))
    tokens = torch.randint(0, 50, (8, 6))
    return model, tokens, lambda out: F.cross_entropy(out.flatten(0, 1), tokens.flatten())


@TRAPS(absent=("P208",))
def correction_of_raw_measurements():
    """A forecast is the last value, in pascals, and a small correction: no layer made it large."""

    class Forecast(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = (
                nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 48), nn.GELU(), nn.Linear(48, 12))
                for _ in range(2)
            )

        def forward(self, x):
            x = x + self.first(x)
            return x + self.second(x)

    values = 101_325 + 500 * torch.randn(32, 12)
    return Forecast(), values, lambda out: F.mse_loss(out, values + torch.randn_like(values))


@TRAPS(absent=("P208",))
def table_of_offsets_beside_raw_outputs():
    """Nothing reads the sum: the table is in the units of the targets."""

    class Forecast(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.hours = mlp(12, 32, 4), nn.Parameter(torch.zeros(24, 4))

        def forward(self, x):
            return 5000 * self.body(x)[:, None] + self.hours

    wanted = 5000 * torch.randn(32, 24, 4)
    return Forecast(), torch.randn(32, 12), lambda out: F.mse_loss(out, wanted)


def _on_raw_inputs(combine, *shape: int, width: int, norm: bool = True):
    """Numbers of 0 to 1000 into a layer of the usual size, and a parameter that is added."""

    class Raw(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.added = nn.Linear(8, 64, bias=False), nn.Parameter(torch.zeros(shape))
            self.norm = nn.LayerNorm(width) if norm else nn.ReLU()
            self.last = nn.Linear(width, 3)

        def forward(self, x):
            return self.last(self.norm(combine(self.first(x), self.added)))

    return Raw(), 1000 * torch.rand(64, 8), classify(64, 3)


@TRAPS(absent=("P208",))
def bias_for_each_head():
    """A bias in four pieces, which the norm reads as one."""
    return _on_raw_inputs(lambda x, b: (x.unflatten(-1, (4, 16)) + b).flatten(1), 4, 16, width=64)


@TRAPS(absent=("P208",))
def bias_for_each_network_of_an_ensemble():
    """No norm divides by the size of the sum."""
    return _on_raw_inputs(lambda x, b: (x[:, None] + b).mean(1), 5, 64, width=64, norm=False)


@TRAPS(absent=("P208",))
def features_as_tokens():
    """Each raw number times a vector, plus a vector: no layer made the sum large."""

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.b = (nn.Parameter(torch.randn(8, 32)) for _ in range(2))
            self.block = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
            self.head = nn.Linear(32, 3)

        def forward(self, x):
            return self.head(self.block(x[..., None] * self.w + self.b).mean(1))

    return Tokens(), 1000 * torch.rand(64, 8), classify(64, 3)


@TRAPS(absent=("P208",))
def large_stream_with_branches_as_large():
    """No norm before the branches: they grow with what they read."""
    body = [blocks.Residual(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 24)) for _ in range(3)]
    model = nn.Sequential(nn.Linear(10, 24), *body, nn.LayerNorm(24), nn.Linear(24, 5))
    nn.init.normal_(model[0].weight, std=3000.0)
    return model, torch.randn(64, 10), classify(64, 5)


@TRAPS(absent=("P208",))
def large_embedding_before_norms_behind_each_sum():
    """Post-norm: the first norm takes the size away."""

    class Post(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
            self.norm = nn.LayerNorm(32)

        def forward(self, x):
            return self.norm(x + self.body(x))

    model = nn.Sequential(nn.Embedding(50, 32), Post(), Post(), nn.Linear(32, 50))
    nn.init.normal_(model[0].weight, std=3000.0)
    tokens = torch.randint(0, 50, (8, 6))
    return model, tokens, lambda out: F.cross_entropy(out.flatten(0, 1), tokens.flatten())


class Words(nn.Module):
    """Words, positions and segments in front of a transformer with norms before its layers."""

    def __init__(self, words=0.02, places=0.02, kinds=0.02, times=1.0, tied=True):
        super().__init__()
        self.words, self.places, self.kinds = (nn.Embedding(n, 32) for n in (50, 12, 2))
        for table, size in ((self.words, words), (self.places, places), (self.kinds, kinds)):
            nn.init.normal_(table.weight, std=size)
        self.times, self.block = times, blocks.Block(32, 4)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 50)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, tokens):
        x = self.words(tokens) * self.times + self.places(torch.arange(tokens.shape[1]))
        return self.head(self.norm(self.block(x + self.kinds(tokens % 2))))

    def sinusoids(self):
        angle = torch.arange(12)[:, None] / 10_000 ** (torch.arange(0, 32, 2) / 32)
        table = torch.stack([angle.sin(), angle.cos()], 2).flatten(1)
        self.places = nn.Embedding.from_pretrained(table)
        return self


def _worded(model):
    tokens = torch.randint(0, 50, (16, 12))
    return model, tokens, blocks.next_token(tokens)


@TRAPS(absent=("P208",))
def tokens_and_positions_of_gpt_2():
    return _worded(Words(places=0.01))


@TRAPS(absent=("P208",))
def positions_ten_times_as_large_as_the_tokens():
    return _worded(Words(places=0.2))


@TRAPS(absent=("P208",))
def tables_as_torch_draws_them():
    return _worded(Words(1.0, 1.0, 1.0, tied=False))


@TRAPS(absent=("P208",))
def sinusoids_beside_tokens_of_the_head():
    """×35: they learn a little later (1.29 for 1.2 after 600 steps)."""
    return _worded(Words().sinusoids())


@TRAPS(absent=("P208",))
def sinusoids_beside_tokens_times_the_root_of_the_width():
    return _worded(Words(times=32**0.5, tied=False).sinusoids())


@TRAPS(absent=("P208",))
def small_segments_beside_tokens_and_positions_of_variance_one():
    return _worded(Words(1.0, 1.0, 0.001, tied=False))


@TRAPS(absent=("P208",))
def tokens_of_zeros_with_a_head_of_their_own():
    """They learn beside positions of size 1 as those of 0.02 do."""
    return _worded(Words(words=0.0, kinds=0.0, tied=False))


@TRAPS(absent=("P208",))
def tokens_next_to_zero_beside_positions_of_the_usual_size():
    """The head gives them their size in the first steps."""
    return _worded(Words(words=1e-6, kinds=1e-6))


@TRAPS(absent=("P208",))
def latents_that_read_a_long_sequence():
    """What a mean of many values adds to them is small, and differs little."""
    model = blocks.Resampler(20 * torch.randn(8, 16))
    return model, torch.randn(16, 256, 16), classify(16, 5)


@TRAPS(absent=("P208",))
def positions_in_a_batch_whose_samples_are_nearly_the_same():

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch = nn.Linear(12, 32)
            self.places = nn.Parameter(10 * torch.randn(8, 32))
            self.block, self.norm = blocks.Block(32, 4), nn.LayerNorm(32)
            self.head = nn.Linear(32, 4)

        def forward(self, x):
            return self.head(self.norm(self.block(self.patch(x) + self.places)).mean(1))

    return Net(), 1 + 0.01 * torch.randn(16, 8, 12), classify(16, 4)


@TRAPS(absent=("P207",))
def a_mean_loss_spread_over_the_samples():
    """What a codec gives: the mean of the batch's errors, once for each sample."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode, self.decode = nn.Linear(16, 8), nn.Linear(8, 16)

        def forward(self, x):
            code = self.encode(x)
            every = torch.ones(len(x))
            return F.mse_loss(self.decode(code), x) * every + code.square().mean() * every

    return Net(), torch.randn(32, 16), torch.mean


@TRAPS(absent=("P207",))
def hidden_layer_of_which_float32_sees_nothing():
    """At 1e-12 its outputs are its biases to the bit; it trains as from zero all the same."""
    return _faint_layer(2, 1e-12)


@TRAPS(absent=("P207",))
def small_table_beside_one_of_the_usual_size():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.kinds = nn.Embedding(40, 16), nn.Embedding(4, 16)
            self.body = mlp(16, 32, 5)
            with torch.no_grad():
                self.kinds.weight.mul_(1e-6)

        def forward(self, tokens):
            return self.body(self.words(tokens) + self.kinds(tokens % 4))

    return Net(), torch.randint(0, 40, (64,)), classify(64, 5)


@TRAPS(absent=("S101",))
def lstm_of_copies_of_which_distinct_weights_read_the_cell_state():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(6, 12, batch_first=True), nn.Linear(12, 3)
            for parameter in self.rnn.parameters():
                nn.init.constant_(parameter, 0.1)

        def forward(self, x):
            return self.head(self.rnn(x)[1][1][-1])

    return Net(), torch.randn(12, 7, 6), classify(12, 3)


@TRAPS(absent=("P206",))
def raw_inputs_that_a_norm_takes_in_front_of_an_lstm():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.rnn = nn.LayerNorm(6), nn.LSTM(6, 24, batch_first=True)
            self.head = nn.Linear(24, 3)

        def forward(self, x):
            return self.head(self.rnn(self.norm(x))[0][:, -1])

    return Net(), 100 * torch.randn(32, 9, 6), classify(32, 3)


class Flow(nn.Module):
    """Coupling layers in a row, each (x) → (y, logarithm of the volume's change); its loss."""

    def __init__(self, coupling):
        super().__init__()
        self.layers = nn.ModuleList(coupling(i % 2) for i in range(4))

    def forward(self, x):
        volume = 0.0
        for layer in self.layers:
            x, more = layer(x)
            volume = volume + more
        return x.square().sum(1) / 2 - volume


def _flow(mask):
    """Coupling layers whose last layers are zero, so that the flow starts as the identity.

    `mask` takes away the half of what a network gives that is not changed.
    """

    class Coupling(nn.Module):
        def __init__(self, flip: int):
            super().__init__()
            self.register_buffer("kept", (torch.arange(6) % 2 == flip).float())
            self.scale, self.shift = mlp(6, 32, 6), mlp(6, 32, 6)
            zero_(self.scale[2], self.shift[2])

        def forward(self, x):
            known = x * self.kept
            scale = mask(self.scale(known).tanh(), self.kept)
            return x * scale.exp() + mask(self.shift(known), self.kept), scale.sum(1)

    return Flow(Coupling), torch.randn(64, 6), torch.mean


@TRAPS(absent=("S101",))
def coupling_layers_with_a_mask_that_start_as_the_identity():
    return _flow(lambda values, kept: (1 - kept) * values)


@TRAPS(absent=("S101",))
def coupling_layers_that_choose_with_where():
    return _flow(lambda values, kept: torch.where(kept > 0, 0.0, values))


@TRAPS(absent=("S101",))
def coupling_layers_that_fill_with_zeros():
    return _flow(lambda values, kept: values.masked_fill(kept > 0, 0.0))


@TRAPS(absent=("S101", "S102"))
def tied_autoencoder():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.bias = nn.Linear(32, 16), nn.Parameter(torch.zeros(32))

        def forward(self, x):
            return F.linear(self.encoder(x).tanh(), self.encoder.weight.T, self.bias)

    x = torch.randn(64, 32)
    return Net(), x, lambda out: F.mse_loss(out, x)


@TRAPS(absent=("S101", "S102"))
def zero_readout_that_is_used_twice_side_by_side():
    """One zero on each path: it moves at the first step."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = mlp(20, 32, 32), nn.Linear(32, 4)
            zero_(self.head)

        def forward(self, x):
            h = self.body(x).relu()
            return self.head(h) + self.head(h.flip(1))

    return Net(), torch.randn(32, 20), classify(32, 4)


@TRAPS(absent=("S101", "S102"))
def zero_readout_in_an_ensemble_under_vmap():
    model, batch, loss = blocks.ensemble()
    nn.init.zeros_(model.b)
    return model, batch, loss


@TRAPS(absent=("S102",))
def token_that_no_sample_asks_for():
    """A mask token, and a table of them, that this batch has no use for."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1, 1, 16))
            self.table = nn.Parameter(torch.randn(6, 16))
            self.body = mlp(16, 32, 4)

        def forward(self, x):
            nowhere = torch.zeros(x.shape[:2], dtype=torch.bool)[..., None]
            x = torch.where(nowhere, self.table, torch.where(nowhere, self.token, x))
            return self.body(x).mean(1)

    return Net(), torch.randn(32, 6, 16), classify(32, 4)


@TRAPS(absent=("S102",))
def parameters_that_a_wrapper_keeps_in_the_graph():
    """A sum times zero gives each parameter a gradient; data-parallel wrappers ask for one."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.spare = mlp(20, 32, 4), nn.Linear(20, 32)

        def forward(self, x):
            return self.body(x) + 0.0 * sum(p.sum() for p in self.spare.parameters())

    return Net(), torch.randn(32, 20), classify(32, 4)


@TRAPS(absent=("S102",))
def scripted_experts_nobody_visits():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(torch.jit.script(mlp(16, 32, 4)) for _ in range(3))

        def forward(self, x):
            chosen = torch.zeros(len(x), dtype=torch.long)  # the router's choice
            parts = [expert(x[chosen == i]) for i, expert in enumerate(self.experts)]
            return torch.cat(parts)

    return Net(), torch.randn(32, 16), classify(32, 4)


# ── scales that training does not mind ───────────────────────────────────────────────────────


def _recurrence(whole: bool, steps: int = 60):
    from zoo.faults import Recurrence

    return Recurrence(whole), torch.rand(64, steps, 2), regress(64, 1)


@TRAPS(absent=("P202", "O301"))
def recurrence_that_starts_as_a_sum():
    """Identity and weights of 1e-3 (IRNN): sixty times the first state, and no larger than 1."""
    model, *rest = _recurrence(whole=False)
    with torch.no_grad():
        nn.init.normal_(model.rnn.weight_ih, std=1e-3)
        model.rnn.weight_hh.copy_(torch.eye(32))
    return model, *rest


@TRAPS(absent=("P202", "O301"))
def recurrence_at_once_that_grows_a_little():
    model, *rest = _recurrence(whole=True)
    nn.init.orthogonal_(model.rnn.weight_hh_l0, 1.3)
    return model, *rest


@TRAPS(absent=("P202", "O301"))
def recurrence_over_raw_inputs():
    """As large as its inputs: nothing grows."""
    model, x, loss = _recurrence(whole=True)
    return model, 1000 * x, lambda out: loss(out / 1000)


def _regression(target, loss=F.mse_loss, **options):
    return mlp(20, 64, 64, 1), torch.randn(64, 20), lambda out: loss(out, target, **options)


@TRAPS(absent=("O301",))
def regression_of_tiny_targets():
    """The loss is 300 times that of guessing zero, and Adam is there in a few steps."""
    return _regression(torch.randn(64, 1) / 100)


@TRAPS(absent=("O301",))
def regression_of_targets_that_are_zero():
    return _regression(torch.zeros(64, 1), F.l1_loss)


@TRAPS(absent=("O301",))
def squares_that_are_summed():
    return _regression(torch.randn(64, 1), reduction="sum")


@TRAPS(absent=("O301",))
def squares_whose_mean_is_taken_by_hand():
    target = torch.randn(64, 1)
    return (
        mlp(20, 64, 64, 1),
        torch.randn(64, 20),
        lambda out: F.mse_loss(out, target, reduction="none").mean(),
    )


@TRAPS(absent=("O301",))
def rewards_under_a_huber_loss():
    return _regression(5 + torch.randn(64, 1), F.huber_loss, delta=0.5)


@TRAPS(absent=("O301",))
def wide_tables_of_variance_one_whose_rows_are_multiplied():
    """Outputs 16 times as large as the targets; as good a start as a smaller one."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.users, self.items = nn.Embedding(50, 256), nn.Embedding(40, 256)

        def forward(self, pairs):
            return (self.users(pairs[:, 0]) * self.items(pairs[:, 1])).sum(-1)

    return Net(), torch.randint(0, 40, (256, 2)), regress(256)


@TRAPS(absent=("O301",))
def loss_in_units_of_its_data():
    """A square written by hand, of targets in single units of money."""
    target = 1e6 * torch.randn(64, 1)
    return mlp(20, 64, 1), torch.randn(64, 20), lambda out: (out - target).square().sum()


# ── frozen at zero beside a way around ───────────────────────────────────────────────────────


def _frozen_zero(parameter: nn.Parameter) -> None:
    nn.init.zeros_(parameter).requires_grad_(False)


@TRAPS(absent=("P207", "P203", "S102"))
def frozen_table_of_zeros_beside_another():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.kinds = nn.Embedding(40, 16), nn.Embedding(4, 16)
            self.body = mlp(16, 32, 5)
            _frozen_zero(self.kinds.weight)

        def forward(self, tokens):
            return self.body(self.words(tokens) + self.kinds(tokens % 4))

    return Net(), torch.randint(0, 40, (64,)), classify(64, 5)


@TRAPS(absent=("P207",))
def frozen_weights_next_to_zero_in_front_of_a_norm():
    """Without a bias in between nothing drowns them."""
    model = nn.Sequential(
        nn.Linear(20, 32, bias=False), nn.LayerNorm(32, eps=0.0), nn.Tanh(), nn.Linear(32, 5)
    )
    with torch.no_grad():
        model[0].weight.mul_(1e-6)
    model[0].requires_grad_(False)
    return model, torch.randn(64, 20), classify(64, 5)


@TRAPS(absent=("P203",))
def scores_whose_own_part_starts_at_zero():
    """What they lack is the first thing that trains."""
    from zoo.faults import Pointer

    model = Pointer()
    nn.init.zeros_(model.own.weight)
    return model, torch.randn(32, 5, 2), classify(32, 5)


# ── taken away, or weighted with zero ────────────────────────────────────────────────────────


@TRAPS(absent=("S101",))
def coupling_layers_with_a_matrix_that_takes_units_away():
    return _flow(lambda values, kept: values @ torch.diag(1 - kept))


@TRAPS(absent=("S101",))
def coupling_layers_that_put_what_they_pick_among_zeros():
    def mask(values, kept):
        at = (kept == 0).nonzero().flatten()
        return torch.zeros_like(values).index_copy(1, at, values[:, at])

    return _flow(mask)


@TRAPS(absent=("S101",))
def coupling_layers_with_scale_and_shift_of_one_network():
    """The mask meets halves of what the last layer gives."""

    class Coupling(nn.Module):
        def __init__(self, flip: int):
            super().__init__()
            self.register_buffer("kept", (torch.arange(6) % 2 == flip).float())
            self.body = mlp(6, 32, 12)
            zero_(self.body[2])

        def forward(self, x):
            scale, shift = self.body(x * self.kept).chunk(2, 1)
            scale = scale.tanh() * (1 - self.kept)
            return x * scale.exp() + shift * (1 - self.kept), scale.sum(1)

    return Flow(Coupling), torch.randn(64, 6), torch.mean


@TRAPS(absent=("S102",))
def ensemble_whose_loss_is_weighted_with_zero():
    """As in a warm-up: no other weight has as many dimensions as the ensemble's."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = mlp(8, 16, 16), nn.Linear(16, 3)
            self.members = nn.Parameter(torch.randn(4, 16, 2))

        def forward(self, x):
            h = self.body(x).relu()
            return self.head(h), torch.vmap(lambda w: h @ w)(self.members).square().mean()

    target = torch.randint(0, 3, (32,))
    return Net(), torch.randn(32, 8), lambda out: F.cross_entropy(out[0], target) + 0.0 * out[1]


@TRAPS(absent=("W504",), watched=True)
def data_that_is_drawn_and_then_given_to_the_parametrization():
    """The weight that was drawn is the one that counts: it is set in the next line."""
    first = nn.utils.parametrizations.weight_norm(nn.Linear(8, 16))
    drawn = first.weight.data
    nn.init.normal_(drawn, std=0.3)
    first.weight = drawn
    return nn.Sequential(first, nn.ReLU(), nn.Linear(16, 3)), torch.randn(32, 8), classify(32, 3)


@TRAPS(absent=("W504",), watched=True)
def an_output_whose_data_is_drawn_over_while_the_model_is_built():
    first = nn.Linear(8, 16)
    first(torch.randn(5, 8)).data.normal_()
    return nn.Sequential(first, nn.ReLU(), nn.Linear(16, 3)), torch.randn(32, 8), classify(32, 3)


@TRAPS(absent=("O301",))
def loss_of_any_kind_on_large_targets():
    """The model hands them on to its loss, which is 1e4 times as large as of unit ones."""
    model = Variational()
    return model, (100 + torch.randn(64, 16)), model.loss


@TRAPS(absent=("O301",))
def loss_of_any_kind_that_sums_over_all_outputs():
    """It is 1e5, and no smaller for outputs of unit size."""
    target = torch.randn(64, 200)
    return nn.Linear(16, 200), torch.randn(64, 16), lambda out: (3 * (out - target)).cosh().sum()


@TRAPS(absent=("P206",))
def gates_beside_bent_units_that_start_nearly_shut():
    model = nn.Sequential(nn.Linear(8, 24), Bent(24, -6.0), Bent(24, -6.0))
    return model.append(nn.Linear(24, 2)), torch.randn(64, 8), regress(64, 2)


@TRAPS(absent=("P206",))
def actor_whose_actions_are_noise_in_bounds():
    wanted = torch.rand(64, 3) - 0.5
    return Actor(), torch.randn(64, 8), lambda action: F.mse_loss(action, wanted)


@TRAPS(absent=("W504",), watched=True)
def draws_of_the_shape_of_a_weight_under_weight_norm():
    """Noise that is kept beside it, and a weight that is drawn first and set then."""
    first = nn.utils.parametrizations.weight_norm(nn.Linear(8, 16))
    with torch.no_grad():
        first.register_buffer("noise", torch.empty_like(first.weight).normal_())
        drawn = first.weight.clone()
        drawn.normal_(std=0.3)
        first.weight = drawn
    return nn.Sequential(first, nn.ReLU(), nn.Linear(16, 3)), torch.randn(32, 8), classify(32, 3)


@TRAPS(absent=("W504",), watched=True)
def numbers_set_in_what_is_computed_from_weights():
    """A mask of a weight's own, and a weight that is emptied, written and set."""
    first = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))
    last = nn.Linear(16, 3)
    mask = last.weight * 2
    mask.data.fill_(1.0)
    with torch.no_grad():
        last.weight.mul_(mask)
        written = first.weight * 1
        written.zero_()
        first.weight = written + torch.eye(16)
    return nn.Sequential(first, nn.ReLU(), last), torch.randn(32, 16), classify(32, 3)


@TRAPS(absent=("P204",))
def sequence_whose_every_step_has_a_loss():
    """The gradient of the first step is that of all later ones: it grows as their number does."""
    return Stepwise(every=True), torch.randn(16, 200, 6), classify(16, 3)


@TRAPS(absent=("P204",))
def long_linear_memory():
    """An orthogonal state without an activation keeps every gradient over 300 steps."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = (
                nn.RNN(6, 32, nonlinearity="relu", batch_first=True),
                nn.Linear(32, 3),
            )
            nn.init.eye_(self.rnn.weight_hh_l0)
            nn.init.zeros_(self.rnn.bias_ih_l0)
            nn.init.zeros_(self.rnn.bias_hh_l0)
            with torch.no_grad():
                self.rnn.weight_ih_l0.mul_(0.02)

        def forward(self, x):
            return self.head(self.rnn(x)[0].mean(1))

    return Net(), torch.randn(16, 300, 6), classify(16, 3)


@TRAPS(absent=("S102",))
def norms_of_scale_zero_in_a_row():
    """They open one after the other, from the last one: seven steps for six of them."""
    layers = []
    for _ in range(6):
        layers += [nn.Linear(16, 16), nn.LayerNorm(16), nn.Tanh()]
        nn.init.zeros_(layers[-2].weight)
    return nn.Sequential(*layers, nn.Linear(16, 3)), torch.randn(64, 16), classify(64, 3)


@TRAPS(absent=("S102",))
def norms_of_scale_zero_that_two_modules_hold():
    """The virtual steps put their tensors into each module once."""

    class Branch(nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.norm, self.body = norm, mlp(16, 32, 16)

        def forward(self, x):
            return x + self.body(self.norm(x))

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(16)
            nn.init.zeros_(self.norm.weight)
            self.branch = Branch(self.norm)

        def forward(self, x):
            return self.branch(x)

    last = nn.LayerNorm(16)
    nn.init.zeros_(last.weight)
    model = nn.Sequential(nn.Linear(8, 16), Layer(), Layer(), last, nn.Linear(16, 3))
    return model, torch.randn(64, 8), classify(64, 3)


@TRAPS(absent=("P204",))
def early_exits_whose_weights_fall():
    """The last step has 2⁻¹⁵ of the loss of the first: it is no growth that the first gets more."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.read, self.step, self.head = nn.Linear(8, 32), nn.Linear(64, 32), nn.Linear(32, 3)

        def forward(self, x):
            given = self.read(x)
            h, out = torch.zeros_like(given), 0
            for t in range(16):
                h = torch.tanh(self.step(torch.cat([h, given], 1)))
                out = out + 0.5**t * self.head(h)
            return out

    return Net(), torch.randn(32, 8), classify(32, 3)


@TRAPS(absent=("P204", "S102"))
def adapter_that_is_added_to_zeros():
    """LoRA merged with addmm: the zeros are no input of its factors."""

    class Adapted(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.base = nn.Linear(inputs, outputs).requires_grad_(False)
            self.down = nn.Parameter(torch.randn(4, inputs) / inputs**0.5)
            self.up = nn.Parameter(torch.zeros(outputs, 4))

        def forward(self, x):
            weight = self.base.weight
            added = torch.addmm(torch.zeros(weight.shape), self.up, self.down)
            return F.linear(x, weight + added, self.base.bias)

    model = nn.Sequential(Adapted(8, 16), nn.ReLU(), Adapted(16, 3))
    return model, torch.randn(32, 8), classify(32, 3)


def _over_time(weigh):
    """A cell over 12 steps, and a loss that weights its states."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head, self.score = nn.GRUCell(6, 16), nn.Linear(16, 3), nn.Linear(16, 1)

        def forward(self, x):
            h, states = x.new_zeros(len(x), 16), []
            for step in x.unbind(1):
                h = self.cell(step, h)
                states.append(h)
            return weigh(self, states)

    return Net(), torch.randn(32, 12, 6), classify(32, 3)


@TRAPS(absent=("P204",))
def outputs_of_steps_that_count_less_and_less():
    return _over_time(lambda m, states: sum(0.4**t * m.head(h) for t, h in enumerate(states)))


@TRAPS(absent=("P204",))
def mixture_over_states_with_next_to_none_of_the_last():
    def mixed(m, states):
        weights = torch.softmax(-2.0 * torch.arange(len(states)), 0)
        return m.head(sum(w * h for w, h in zip(weights, states, strict=True)))

    return _over_time(mixed)


@TRAPS(absent=("P204",))
def pondering_that_halts_early():
    def pondered(m, states):
        left, out = 1.0, 0.0
        for h in states:
            halt = torch.sigmoid(m.score(h) + 1)
            out, left = out + left * halt * m.head(h), left * (1 - halt)
        return out

    return _over_time(pondered)


# ── beside the trunk ─────────────────────────────────────────────────────────────────────────

_SCALES = ("P201", "P202", "P203", "P204")


@TRAPS(absent=_SCALES)
def deep_body_of_small_size_beside_a_skip():
    """One small factor is a design: the body starts by adding next to nothing."""
    branch = blocks.Scaled(*blocks.deep(16, 16), start=1e-6)
    model = nn.Sequential(nn.Linear(20, 16), branch, nn.Linear(16, 4))
    return model, torch.randn(64, 20), classify(64, 4)


@TRAPS(absent=_SCALES)
def deep_body_beside_the_input_with_a_small_last_layer():
    body = blocks.deep(20, 20)
    nn.init.normal_(body[-1].weight, std=1e-5)
    model = blocks.Towers(nn.Identity(), body, torch.add)
    return model, torch.randn(64, 20), regress(64, 20)


@TRAPS(absent=_SCALES)
def deep_body_beside_the_input_with_a_last_layer_of_zeros():
    body = blocks.deep(20, 20)
    zero_(body[-1])
    model = blocks.Towers(nn.Identity(), body, torch.add)
    return model, torch.randn(64, 20), regress(64, 20)


@TRAPS(absent=_SCALES)
def tower_whose_output_counts_for_next_to_nothing():
    """An auxiliary loss with a weight of 1e-6: its gradient is small at every depth alike."""
    model = blocks.Towers(blocks.deep(20, 4), blocks.deep(20, 1), lambda a, v: (a, v))
    act, worth = classify(64, 4), regress(64, 1)
    return model, torch.randn(64, 20), lambda out: act(out[0]) + 1e-6 * worth(out[1])


@TRAPS(absent=_SCALES)
def wide_and_deep():
    model = blocks.Towers(nn.Linear(20, 4), blocks.deep(20, 4), torch.add)
    return model, torch.randn(64, 20), classify(64, 4)


# ── weights that stay, while others move ─────────────────────────────────────────────────────


@TRAPS(absent=("S102",))
def biases_alone_are_trained():
    """BitFit; that of the keys cancels in the softmax."""
    model = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("bias" in name)
    return model, torch.randn(8, 6, 16), regress(8, 6, 16)


@TRAPS(absent=("S102", "P205"))
def some_pictures_dead_behind_a_pool():
    """A few units are off on every sample, behind a pool; the others are not."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 32, 3, 2, padding=1), nn.Linear(512, 5)
            self.conv.bias.data[:4] = -30.0

        def forward(self, x):
            return self.head(F.max_pool2d(self.conv(x), 3, 1, 1).flatten(1).relu())

    return Net(), torch.randn(32, 3, 8, 8), classify(32, 5)


@TRAPS(absent=("S102",))
def binary_weights_within_the_range_that_hands_gradients_on():
    from zoo.faults import _Binary

    model = nn.Sequential(_Binary(20, 64), nn.ReLU(), _Binary(64, 5))
    return model, torch.randn(64, 20), classify(64, 5)


# ── ways of writing that others use ──────────────────────────────────────────────────────────


class _Reversed(torch.autograd.Function):
    """Reversible residual blocks (Gomez 2017): computed anew, and backward, on the way back."""

    @staticmethod
    def forward(ctx, x, one, other):
        with torch.no_grad():
            a, b = x.chunk(2, -1)
            a = a + one(b)
            b = b + other(a)
            x = torch.cat([a, b], -1)
        ctx.made, ctx.blocks = x.detach(), (one, other)
        return x

    @staticmethod
    def backward(ctx, gradient):
        (one, other), (a, b) = ctx.blocks, ctx.made.chunk(2, -1)
        to_a, to_b = gradient.chunk(2, -1)
        with torch.enable_grad():
            a = a.detach().requires_grad_()
            added = other(a)
            torch.autograd.backward(added, to_b)
        b, to_a = b - added.detach(), to_a + a.grad
        with torch.enable_grad():
            b = b.detach().requires_grad_()
            torch.autograd.backward(one(b), to_a)
        return torch.cat([to_a, to_b + b.grad], -1), None, None


@TRAPS(absent=("W501", "W504", "S102"))
def reversible_blocks_that_run_backward_by_themselves():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Linear(20, 32), nn.Linear(32, 5)
            self.one, self.other = mlp(16, 32, 16), mlp(16, 32, 16)

        def forward(self, x):
            return self.head(_Reversed.apply(self.first(x), self.one, self.other))

    return Net(), torch.randn(64, 20), classify(64, 5)


@TRAPS(absent=("S101", "S102", "W501"))
def states_that_are_the_output_themselves():
    """No layer reads what a recurrence written by hand gives (torchrl's LSTM)."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.RNNCell(6, 16)

        def forward(self, x):
            state, states = x.new_zeros(len(x), 16), []
            for step in x.unbind(1):
                state = self.cell(step, state)
                states.append(state)
            return torch.stack(states, 1)

    return Net(), torch.randn(8, 5, 6), regress(8, 5, 16)


@TRAPS(absent=("S101", "S102"))
def loss_of_its_own_with_a_penalty_of_weights():
    """The model returns it: what is added is one number, and no offset of units."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.gate, self.head = (
                nn.Linear(20, 16),
                nn.Linear(16, 1),
                nn.Linear(16, 5),
            )

        def forward(self, x, labels):
            h = self.hidden(x).relu()
            loss = F.cross_entropy(self.head(h * self.gate(h).sigmoid()), labels)
            return loss + 1e-3 * (self.gate.weight.norm(2) + self.hidden.bias.norm(2))

    return Net(), (torch.randn(32, 20), torch.randint(0, 5, (32,))), lambda out: out


@TRAPS(absent=("S101", "S102"))
def copies_of_a_signal_each_with_scales_of_its_own():
    """FLASH: queries and keys are one projection times two learned scales, by einsum."""

    class Unit(nn.Module):
        def __init__(self):
            super().__init__()
            self.both = nn.Linear(16, 8)
            self.scales = nn.Parameter(0.02 * torch.randn(2, 8) + 1)
            self.offsets = nn.Parameter(torch.zeros(2, 8))
            self.values, self.out = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x):
            both = F.silu(self.both(x))
            both = torch.einsum("... d, h d -> ... h d", both, self.scales) + self.offsets
            queries, keys = both.unbind(-2)
            weights = (queries @ keys.transpose(-1, -2) / x.shape[1]).relu().square()
            return x + self.out(weights @ self.values(x))

    model = nn.Sequential(nn.Linear(6, 16), Unit(), nn.LayerNorm(16), nn.Linear(16, 3))
    return model, torch.randn(16, 9, 6), regress(16, 9, 3)


@TRAPS(absent=("S104",))
def parameters_side_by_side_in_one_buffer():
    """As a recurrent layer is flattened, or a model sharded."""
    model = mlp(16, 16, 16, 4)
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    start = 0
    for layer in model[::2]:
        for name, own in list(layer.named_parameters()):
            part = flat[start : start + own.numel()].view_as(own)
            setattr(layer, name, nn.Parameter(part))
            start += own.numel()
    return model, torch.randn(32, 16), classify(32, 4)


@TRAPS(absent=("S102", "P205"))
def film_that_starts_as_the_identity():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.generator = mlp(6, 24, 48)
            self.first, self.second, self.head = mlp(10, 24), nn.Linear(24, 24), nn.Linear(24, 4)
            zero_(self.generator[2])

        def forward(self, x, condition):
            scale, shift = self.generator(condition).chunk(2, -1)
            return self.head(((1 + scale) * self.second(self.first(x).relu()) + shift).relu())

    return Net(), (torch.randn(32, 10), torch.randn(32, 6)), classify(32, 4)


@TRAPS(absent=("N403", "P202", "O301"))
def temperature_of_a_contrastive_loss():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.temperature = mlp(16, 24, 4), nn.Parameter(torch.tensor(0.5))

        def forward(self, x):
            return F.normalize(self.body(x), dim=1) / self.temperature

    return Net(), torch.randn(32, 16), classify(32, 4)


@TRAPS(absent=("P203", "S102"))
def zero_layer_between_leaky_ones():
    """It grows at the first step; until then slopes of 0.01 keep the others from moving."""
    model = mlp(20, *[32] * 7, 5, act=nn.LeakyReLU)
    for layer in model[::2]:
        nn.init.kaiming_normal_(layer.weight, a=0.01)
        nn.init.zeros_(layer.bias)
    nn.init.zeros_(model[6].weight)
    return model, torch.randn(64, 20), classify(64, 5)


class _Binned(nn.Module):
    """A head of zeros, and a loss inside of the model: of bins that the batch lacks, none is one
    with another for ever."""

    def __init__(self, loss):
        super().__init__()
        self.body, self.head, self.loss = mlp(16, 32, 32), nn.Linear(32, 60), loss
        zero_(self.head)

    def forward(self, x, target):
        return self.loss(self.head(self.body(x).relu()), target)


def _soft(out, target):
    return -(target * out.log_softmax(-1)).sum(-1).mean()


@TRAPS(absent=("S101", "S102"))
def zero_head_under_a_loss_of_one_hot_labels():
    def loss(out, labels):
        return _soft(out, F.one_hot(labels, 60))

    return _Binned(loss), (torch.randn(32, 16), torch.randint(0, 60, (32,))), lambda out: out


@TRAPS(absent=("S101", "S102"))
def zero_head_under_a_loss_of_two_hot_bins():
    """DreamerV3: a number as shares of the two bins around it."""

    def loss(out, number):
        place = number.clamp(-3, 3) * 8 + 28
        low = place.floor().long()
        share = (place - low)[:, None]
        target = F.one_hot(low, 60) * (1 - share) + F.one_hot(low + 1, 60) * share
        return _soft(out, target)

    return _Binned(loss), (torch.randn(32, 16), torch.randn(32)), lambda out: out


@TRAPS(absent=("S101", "S102"))
def zero_head_under_one_of_several_losses():
    """A world model: what it makes of the next state is another term of the loss."""

    class World(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.next, self.head = mlp(16, 32, 32), mlp(32, 32, 16), nn.Linear(32, 60)
            zero_(self.head)

        def forward(self, x, after, labels):
            h = self.body(x).relu()
            reward = _soft(self.head(h), F.one_hot(labels, 60))
            return 0.5 * F.mse_loss(self.next(h), after) + reward

    batch = (torch.randn(32, 16), torch.randn(32, 16), torch.randint(0, 60, (32,)))
    return World(), batch, lambda out: out


@TRAPS(absent=("S101", "S102"))
def zero_head_under_binary_labels_made_of_classes():
    def loss(out, labels):
        return F.binary_cross_entropy_with_logits(out, F.one_hot(labels, 60).float())

    return _Binned(loss), (torch.randn(32, 16), torch.randint(0, 60, (32,))), lambda out: out


# ── biases of a last layer that are meant ────────────────────────────────────────────────────


def _rare(share: float, loss):
    """A prior of 0.01, and this share of positives."""
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 20), nn.Sigmoid())
    nn.init.normal_(model[2].weight, std=0.01)
    nn.init.constant_(model[2].bias, -4.6)
    target = (torch.rand(64, 20) < share).float()
    return model, torch.randn(64, 8), lambda out: loss(out, target)


@TRAPS(absent=("P206",))
def prior_of_a_rare_class():
    return _rare(0.01, F.binary_cross_entropy)


@TRAPS(absent=("P206",))
def prior_of_a_class_that_the_batch_lacks():
    return _rare(0.0, F.binary_cross_entropy)


@TRAPS(absent=("P206",))
def prior_of_a_rare_class_of_which_the_batch_has_nothing_else():
    """It starts worse than without, and the loss pulls it back."""
    return _rare(1.0, F.binary_cross_entropy)


@TRAPS(absent=("P206",))
def prior_of_a_rare_class_under_a_squared_error():
    return _rare(0.01, F.mse_loss)


@TRAPS(absent=("P207",))
def zeros_in_a_row_beside_a_way_around_them():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
            nn.init.zeros_(self.one.weight)
            nn.init.zeros_(self.two.weight)

        def forward(self, x):
            return self.head(x + self.two(torch.tanh(self.one(x))))

    return Net(), torch.randn(64, 8), classify(64, 4)


@TRAPS(absent=("P207",))
def zero_token_and_positions_in_front_of_a_zero_head():
    """DeiT with zeros: what is put beside the signal, or added to it, stops nothing."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.norm = nn.Linear(12, 16), nn.LayerNorm(16)
            self.token = nn.Parameter(torch.zeros(1, 1, 16))
            self.places = nn.Parameter(torch.zeros(1, 6, 16))
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
            self.head = nn.Linear(16, 4)
            nn.init.zeros_(self.head.weight)

        def forward(self, x):
            x = torch.cat([self.token.expand(len(x), -1, -1), self.patches(x)], 1) + self.places
            y = self.norm(x)
            return self.head((x + self.attention(y, y, y, need_weights=False)[0])[:, 0])

    return Net(), torch.randn(16, 5, 12), classify(16, 4)


@TRAPS(absent=("S102",))
def logarithm_of_zero_beside_ratios_that_underflow():
    """The width is exp(0) = 1: what holds the policy back is the batch, not a zero factor."""

    class Policy(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean, self.value = mlp(6, 16, 3, act=nn.Tanh), mlp(6, 16, 1, act=nn.Tanh)
            self.log_std = nn.Parameter(torch.zeros(3))

        def forward(self, x):
            chosen = torch.distributions.Normal(self.mean(x), self.log_std.exp())
            return chosen.log_prob(x[:, :3]).sum(1), self.value(x)

    return (
        Policy(),
        torch.randn(32, 6),
        lambda out: (out[0] - 1e4).exp().mean() + out[1].pow(2).mean(),
    )
