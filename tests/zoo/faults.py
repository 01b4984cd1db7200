"""Faults: each row of "Must be found", and the textbook case of every rule, as small as it gets."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

from zoo import Zoo, blocks
from zoo.blocks import Actor, Routed, Stepwise, classify, mlp, regress, zero_

__all__ = ["FAULTS"]

FAULTS = Zoo()

ERROR = {"severities": ("error",), "ok": False}
WARNING = {"severities": ("warning",), "ok": True}
EITHER = {"severities": ("error", "warning")}


# ── locked units ─────────────────────────────────────────────────────────────────────────────


@FAULTS(codes=("S101", "S102"), layers=("0", "2"), **ERROR)
def zeros_under_relu():
    """Nothing but the last bias ever moves."""
    model = mlp(2, 10, 5, 1)
    zero_(model)
    labels = torch.randint(0, 2, (40, 1)).float()
    return model, torch.randn(40, 2), lambda out: F.binary_cross_entropy_with_logits(out, labels)


@FAULTS(codes=("S101", "S102"), layers=("0", "2"), **ERROR)
def zeros_under_relu_and_softmax():
    model = mlp(20, 32, 32, 5)
    zero_(model)
    return model, torch.randn(40, 20), classify(40, 5)


@FAULTS(codes=("S101", "S102"), layers=("0", "2"), **ERROR)
def zeros_under_relu_at_the_least_of_their_loss():
    """The square of zeros has no slope, but any other loss would move nothing either."""
    model, batch, _ = zeros_under_relu()
    return model, batch, lambda out: out.square().mean()


@FAULTS(codes=("S102",), layers=("left", "right"), **ERROR)
def zero_embeddings_whose_product_is_in_the_loss():
    """The loss has no slope either, but it is not least there: each is held by the other."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(12, 8), nn.Linear(12, 8)
            zero_(self)

        def forward(self, x):
            return self.left(x), self.right(x)

    target = torch.randn(32, 32)
    return Net(), torch.randn(32, 12), lambda out: (out[0] @ out[1].T - target).square().mean()


@FAULTS(codes=("S101",), layers=("0", "2"), **ERROR)
def zeros_under_sigmoid():
    """The weights move, and the units stay one."""
    model = mlp(20, 32, 32, 5, act=nn.Sigmoid)
    zero_(model)
    return model, torch.randn(40, 20), classify(40, 5)


@FAULTS(codes=("S101", "S102"), layers=("0", "2"), **ERROR)
def zeros_with_dropout():
    """Dropout breaks no tie of an all-zero ReLU network."""
    model = nn.Sequential(
        nn.Linear(20, 32),
        nn.ReLU(),
        nn.Linear(32, 32),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(32, 5),
    )
    zero_(model)
    return model, torch.randn(40, 20), classify(40, 5)


@FAULTS(codes=("S101",), layers=("0", "2"), **ERROR)
def constants():
    model = mlp(20, 32, 32, 5, act=nn.Tanh)
    for layer in model[::2]:
        nn.init.constant_(layer.weight, 0.1)
        nn.init.zeros_(layer.bias)
    return model, torch.randn(40, 20), regress(40, 5)


@FAULTS(codes=("S101",), layers=("0", "2"), **ERROR)
def circulant_in_the_middle():
    """The rows of the middle layer all differ; every layer is one unit all the same."""
    model = mlp(12, 16, 16, 3, act=nn.Tanh)
    with torch.no_grad():
        model[0].weight[:] = model[0].weight[0].clone()
        row = torch.randn(16) / 4
        model[2].weight.copy_(torch.stack([row.roll(i) for i in range(16)]))
        model[4].weight[:] = model[4].weight[:, :1].clone()
        for layer in model[:4:2]:
            layer.bias.zero_()
    return model, torch.randn(40, 12), regress(40, 3)


@FAULTS(codes=("S101",), layers=("0",), words=(("31", "2 of 32"),), **EITHER)
def one_cloned_pair():
    """31 distinct units of 32."""
    model = mlp(20, 32, 5, act=nn.Tanh)
    with torch.no_grad():
        model[0].weight[7], model[0].bias[7] = model[0].weight[3].clone(), model[0].bias[3].clone()
        model[2].weight[:, 7] = model[2].weight[:, 3].clone()
    return model, torch.randn(40, 20), classify(40, 5)


@FAULTS(codes=("S101",), layers=("0",), **EITHER)
def equal_in_and_all_zero_out():
    """Copies whose outgoing weights are zero stay copies."""
    model = mlp(20, 16, 5, act=nn.Tanh)
    with torch.no_grad():
        model[0].weight[:] = model[0].weight[0].clone()
        model[0].bias[:] = model[0].bias[0].clone()
        model[2].weight.zero_()
    return model, torch.randn(40, 20), classify(40, 5)


@FAULTS(codes=("S101",), layers=("0",), words=("25 distinct of 32",), **WARNING)
def rows_of_zeros_that_meet_columns_of_zeros():
    """A quarter of the layer, zero on both of its sides, while the others learn."""
    model = mlp(10, 32, 4, act=nn.Tanh)
    with torch.no_grad():
        model[0].weight[8:16], model[0].bias[8:16], model[2].weight[:, 8:16] = 0.0, 0.0, 0.0
    return model, torch.randn(16, 10), classify(16, 4)


@FAULTS(codes=("S101",), layers=("0",), **EITHER)
def locked_channels_of_a_convolution():
    """A filter, its norm and the slice of the next layer: four equal pairs."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip
    with torch.no_grad():
        model[0].weight[4:], model[0].bias[4:] = (
            model[0].weight[:4].clone(),
            model[0].bias[:4].clone(),
        )
        model[3].weight[:, 4:] = model[3].weight[:, :4].clone()
    return model, torch.randn(8, 3, 10, 10), classify(8, 4)


@FAULTS(codes=("S101",), layers=("0", "3", "6"), **ERROR)
def constants_whose_biases_batch_norms_take_away():
    """Units differ by their biases alone, which no layer behind the norm can see."""
    hidden = [(nn.Linear(n, 24), nn.BatchNorm1d(24), nn.ReLU()) for n in (8, 24, 24)]
    model = nn.Sequential(*(layer for block in hidden for layer in block), nn.Linear(24, 4))
    for layer in (m for m in model if isinstance(m, nn.Linear)):
        nn.init.constant_(layer.weight, 0.02)
    return model, torch.randn(64, 8), classify(64, 4)


@FAULTS(codes=("S101",), layers=("0",), **ERROR)
def constant_convolution_whose_biases_an_instance_norm_takes_away():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip
    with torch.no_grad():
        model[0].weight.fill_(0.05)
        model[3].weight[:] = model[3].weight[:, :1]
    return model, torch.randn(16, 3, 12, 12), classify(16, 4)


@FAULTS(codes=("S101",), layers=(("0", "1"),), **ERROR)
def constant_convolutions():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 3, padding=1), nn.Tanh(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    for layer in (model[0], model[2], model[6]):
        nn.init.constant_(layer.weight, 0.05)
        nn.init.zeros_(layer.bias)
    return model, torch.randn(8, 3, 10, 10), classify(8, 4)


@FAULTS(codes=("S101",), layers=(("attention.qkv", "attention.q", "attention.proj"),), **EITHER)
def identical_heads():
    """Four heads, all the same in q, k, v and in their columns of the output projection."""

    class Net(nn.Module):
        def __init__(self, n=32, heads=4):
            super().__init__()
            self.inlet, self.attention, self.head = (
                nn.Linear(6, n),
                blocks.Attention(n, heads),
                nn.Linear(n, 3),
            )
            size = n // heads
            with torch.no_grad():
                for block in self.attention.qkv.weight.chunk(3):
                    block.copy_(block[:size].repeat(heads, 1))
                for block in self.attention.qkv.bias.chunk(3):
                    block.copy_(block[:size].repeat(heads))
                out = self.attention.proj.weight
                out.copy_(out[:, :size].repeat(1, heads))

        def forward(self, x):
            x = self.inlet(x)
            return self.head((x + self.attention(x)).mean(1))

    return Net(), torch.randn(8, 7, 6), classify(8, 3)


@FAULTS(codes=("S101",), layers=("rnn",), **EITHER)
def constant_lstm():
    """All hidden units of the recurrent layer are one; so are the columns that read them."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(6, 12, batch_first=True), nn.Linear(12, 3)
            for parameter in self.rnn.parameters():
                nn.init.constant_(parameter, 0.1)
            with torch.no_grad():
                self.head.weight[:] = self.head.weight[:, :1].clone()

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    return Net(), torch.randn(12, 7, 6), classify(12, 3)


def _last_state_of_copies(cell, memory=False, **kwargs):
    """A loss that sees the last state of a recurrent layer, and never its sequence of states.

    Of an LSTM it is the hidden state, or with `memory` that of the cells.
    """

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = cell(6, 12, batch_first=True, **kwargs), nn.Linear(12, 3)
            for parameter in self.rnn.parameters():
                nn.init.constant_(parameter, 0.1)
            with torch.no_grad():
                self.head.weight[:] = self.head.weight[:, :1].clone()

        def forward(self, x):
            state = self.rnn(x)[1]
            return self.head((state[int(memory)] if isinstance(state, tuple) else state)[-1])

    return Net(), torch.randn(12, 7, 6), classify(12, 3)


@FAULTS(codes=("S101",), layers=("rnn",), **EITHER)
def constant_gru_of_which_the_last_state_is_read():
    return _last_state_of_copies(nn.GRU)


@FAULTS(codes=("S101",), layers=("rnn",), **EITHER)
def constant_lstm_of_which_the_last_state_is_read():
    return _last_state_of_copies(nn.LSTM, bidirectional=True)


@FAULTS(codes=("S101",), layers=("rnn",), **EITHER)
def constant_lstm_of_which_the_cell_state_is_read():
    return _last_state_of_copies(nn.LSTM, memory=True)


@FAULTS(codes=("S101",), layers=("rnn",), **EITHER)
def constant_lstm_of_which_the_cell_states_of_both_directions_are_read():
    return _last_state_of_copies(nn.LSTM, memory=True, bidirectional=True)


@FAULTS(codes=("S101",), layers=("rnn",), **EITHER)
def constant_encoder_that_hands_its_state_on():
    """Only the state of the encoder reaches the decoder."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(6, 12, batch_first=True)
            self.decoder, self.head = nn.GRU(5, 12, batch_first=True), nn.Linear(12, 3)
            for parameter in (*self.rnn.parameters(), *self.decoder.parameters()):
                nn.init.constant_(parameter, 0.1)
            with torch.no_grad():
                self.head.weight[:] = self.head.weight[:, :1].clone()

        def forward(self, x, y):
            return self.head(self.decoder(y, self.rnn(x)[1])[0]).flatten(0, 1)

    return Net(), (torch.randn(12, 7, 6), torch.randn(12, 4, 5)), classify(48, 3)


@FAULTS(
    thread="net2net.torch#3",
    codes=("S101",),
    layers=("0",),
    words=("0", "8"),
    **EITHER,
)
def net2net_without_noise():
    """Widened from 8 to 16: unit i + 8 is a copy of unit i, and both send half."""
    model = mlp(20, 16, 5)
    with torch.no_grad():
        model[0].weight[8:], model[0].bias[8:] = (
            model[0].weight[:8].clone(),
            model[0].bias[:8].clone(),
        )
        model[2].weight[:, :8] /= 2
        model[2].weight[:, 8:] = model[2].weight[:, :8].clone()
    return model, torch.randn(40, 20), classify(40, 5)


@FAULTS(
    thread="laekov/fastmoe#4",
    codes=("S101",),
    layers=(("1.router", "1.w1", "1.w2"),),
    **EITHER,
)
def equal_experts_and_equal_router_rows():
    model = nn.Sequential(nn.Linear(10, 16), blocks.BatchedExperts(), nn.Linear(16, 4))
    with torch.no_grad():
        for weight in (model[1].w1, model[1].w2, model[1].router.weight):
            weight[:] = weight[:1].clone()
    return model, torch.randn(48, 10), classify(48, 4)


@FAULTS(
    thread="laekov/fastmoe#4",
    codes=("S101",),
    layers=(("1.router", "1.experts.0.0", "1.experts.0", "1.experts.1"),),
    **EITHER,
)
def equal_expert_modules_and_equal_router_rows():
    """Modules in a list, each built after the same seed; all are visited by every sample."""
    moe = blocks.RoutedExperts(experts=4, top=4)
    with torch.no_grad():
        for expert in moe.experts[1:]:
            expert.load_state_dict(moe.experts[0].state_dict())
        moe.router.weight[:] = moe.router.weight[:1].clone()
    model = nn.Sequential(nn.Linear(10, 16), moe, nn.Linear(16, 4))
    return model, torch.randn(48, 10), classify(48, 4)


@FAULTS(
    thread="laekov/fastmoe#4",
    codes=("S104", "S103"),
    severities=("warning", "info"),
    layers=(("1.experts.0", "1.experts.0.0"), ("1.experts.1", "1.experts.1.0")),
    ok=True,
)
def equal_expert_modules_with_distinct_router_rows():
    """Made alike, and told apart by the router: a warning."""
    moe = blocks.RoutedExperts(experts=4, top=4)
    for expert in moe.experts[1:]:
        expert.load_state_dict(moe.experts[0].state_dict())
    model = nn.Sequential(nn.Linear(10, 16), moe, nn.Linear(16, 4))
    return model, torch.randn(48, 10), classify(48, 4)


@FAULTS(
    thread="modelscope/ms-swift#7944, torchtitan#3106",
    codes=("S104",),
    severities=("warning",),
    layers=("0",),
    ok=True,
)
def two_shards_drawn_with_one_seed():
    """The second half of the rows repeats the first; what reads them is drawn anew."""
    model = mlp(20, 32, 5)
    with torch.no_grad():
        model[0].weight[16:], model[0].bias[16:] = (
            model[0].weight[:16].clone(),
            model[0].bias[:16].clone(),
        )
    return model, torch.randn(40, 20), classify(40, 5)


@FAULTS(
    thread="modelscope/ms-swift#7944, torchtitan#3106", codes=("S101",), layers=("0",), **EITHER
)
def two_shards_and_the_columns_as_well():
    model = mlp(20, 32, 5)
    with torch.no_grad():
        model[0].weight[16:], model[0].bias[16:] = (
            model[0].weight[:16].clone(),
            model[0].bias[:16].clone(),
        )
        model[2].weight[:, 16:] = model[2].weight[:, :16].clone()
    return model, torch.randn(40, 20), classify(40, 5)


@FAULTS(codes=("S105",), layers=("0",), **WARNING)
def mirrored_under_tanh():
    """Rows w and −w whose columns are v and −v: a pair that does the work of one."""
    model = mlp(10, 16, 4, act=nn.Tanh)
    with torch.no_grad():
        model[0].weight[8:], model[0].bias[8:] = -model[0].weight[:8], -model[0].bias[:8]
        model[2].weight[:, 8:] = -model[2].weight[:, :8]
    return model, torch.randn(40, 10), classify(40, 4)


@FAULTS(codes=("S103",), severities=("info",), layers=("0",), ok=True)
def constant_first_layer():
    """One unit now, and the next layer's columns pull it apart."""
    model = mlp(10, 16, 4, act=nn.Tanh)
    nn.init.constant_(model[0].weight, 0.1)
    nn.init.zeros_(model[0].bias)
    return model, torch.randn(40, 10), classify(40, 4)


# ── rows of a parameter ──────────────────────────────────────────────────────────────────────


@FAULTS(
    thread="transformers#31151",
    codes=("S101",),
    layers=("latents",),
    words=("1 distinct of 8 rows",),
    **WARNING,
)
def perceiver_latents_of_ones():
    return blocks.Resampler(torch.ones(8, 32)), torch.randn(32, 10, 32), classify(32, 5)


@FAULTS(codes=("S101",), layers=("rows",), words=("1 distinct of 4 rows",), **WARNING)
def registers_of_zeros():
    return blocks.Prefixed(torch.zeros(4, 32)), torch.randn(32, 8, 32), classify(32, 5)


@FAULTS(codes=("S101",), layers=("0.rows",), words=("Rows 0–4 of 0.rows",), **WARNING)
def prompts_that_start_as_one_word():
    """Copies of a row that was drawn: the first of them stays as it is in a repair."""
    model = nn.Sequential(blocks.Prefixed(torch.randn(1, 32).repeat(5, 1) / 5))
    return model, torch.randn(32, 8, 32), classify(32, 5)


@FAULTS(codes=("S101",), layers=("rows", "places"), **WARNING)
def registers_of_zeros_at_places_of_zeros():
    """The places of the registers are copies as these are; those of the tokens part."""
    model = blocks.Prefixed(torch.zeros(4, 32), torch.zeros(12, 32))
    return model, torch.randn(32, 8, 32), classify(32, 5)


@FAULTS(codes=("S101",), layers=("prompts",), **WARNING)
def deep_prompts_of_zeros():
    """Three for each layer, in one parameter; those of two layers differ."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.prompts = nn.Parameter(torch.zeros(2, 3, 32))
            self.first, self.second = blocks.Block(32, 4), blocks.Block(32, 4)
            self.head = nn.Linear(32, 5)

        def forward(self, x):
            for prompts, block in zip(self.prompts, (self.first, self.second), strict=True):
                x = block(torch.cat([prompts.expand(len(x), -1, -1), x[:, -8:]], 1))
            return self.head(x.mean(1))

    return Net(), torch.randn(32, 8, 32), classify(32, 5)


@FAULTS(codes=("S101",), layers=("prompts",), words=("of prompts.weight",), **WARNING)
def table_of_prompts_that_is_looked_up_in_order():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.prompts, self.net = nn.Embedding(4, 32), blocks.Block(32, 4)
            self.head = nn.Linear(32, 5)
            nn.init.ones_(self.prompts.weight)

        def forward(self, x):
            prompts = self.prompts(torch.arange(4, device=x.device))
            return self.head(self.net(torch.cat([prompts.expand(len(x), -1, -1), x], 1)).mean(1))

    return Net(), torch.randn(32, 8, 32), classify(32, 5)


def _clusters(width: int) -> torch.Tensor:
    return 3 * torch.randn(5, width)[torch.randint(0, 5, (128,))] + torch.randn(128, width)


@FAULTS(codes=("S101",), layers=("means",), words=("1 distinct of 6 rows",), **ERROR)
def equal_means_of_a_mixture():
    return blocks.Mixture(torch.zeros(6, 2)), _clusters(2), lambda out: -out.mean()


@FAULTS(codes=("S101",), layers=("means",), words=("Rows 0–5 of means",), **ERROR)
def equal_means_of_a_mixture_over_one_number():
    return blocks.Mixture(torch.zeros(6)), _clusters(1)[:, 0], lambda out: -out.mean()


@FAULTS(thread="pytorch-ntm#9", codes=("S101",), layers=("memory",), **WARNING)
def memory_of_zeros():
    """Slots that are found by their likeness to a key, and read by it."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.memory = nn.Parameter(torch.zeros(8, 6))
            self.key, self.head = nn.Linear(10, 6), nn.Linear(16, 5)

        def forward(self, x):
            alike = F.cosine_similarity(self.key(x)[:, None], self.memory[None], dim=-1)
            return self.head(torch.cat([alike.softmax(-1) @ self.memory, x], 1))

    return Net(), torch.randn(64, 10), classify(64, 5)


# ── clones ───────────────────────────────────────────────────────────────────────────────────


@FAULTS(
    thread="pytorch#72253, #86274, #120396",
    codes=("S104",),
    layers=("1.layers.0", "1.layers.1", "1.layers.2"),
    **WARNING,
)
def transformer_encoder_of_copies():
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = nn.Sequential(
        nn.Linear(6, 32),
        nn.TransformerEncoder(layer, 3, enable_nested_tensor=False),
        blocks.Lambda(lambda x: x.mean(1)),
        nn.Linear(32, 4),
    )
    return model, torch.randn(8, 9, 6), classify(8, 4)


@FAULTS(thread="Stoix#73", codes=("S104",), layers=("first", "second"), **WARNING)
def twin_critics_by_deepcopy():
    class Twins(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = mlp(8, 32, 32, 1)
            self.second = copy.deepcopy(self.first)

        def forward(self, x):
            return self.first(x), self.second(x)

    target = torch.randn(48, 1)
    return (
        Twins(),
        torch.randn(48, 8),
        lambda out: F.mse_loss(out[0], target) + F.mse_loss(out[1], target),
    )


@FAULTS(
    thread="keras-hub#352",
    codes=("S104",),
    layers=(("1", "1.body.0"), ("2", "2.body.0"), ("3", "3.body.0")),
    **WARNING,
)
def one_seeded_initializer_for_all_layers():
    model = nn.Sequential(
        nn.Linear(10, 24),
        *(blocks.Residual(nn.Linear(24, 24), nn.GELU()) for _ in range(3)),
        nn.Linear(24, 4),
    )
    for block in model[1:4]:
        weight = block.body[0].weight
        seeded = torch.Generator(weight.device).manual_seed(7)
        nn.init.normal_(weight, std=0.2, generator=seeded)
    return model, torch.randn(40, 10), classify(40, 4)


# ── deadlocks ────────────────────────────────────────────────────────────────────────────────


class Gate(nn.Module):
    """x + tanh(W2 relu(W1 x)) x, as LAVT gates language into vision."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.Linear(n, n, bias=False), nn.ReLU(), nn.Linear(n, n, bias=False), nn.Tanh()
        )
        zero_(self.gate)

    def forward(self, x):
        return x + self.gate(x) * x


@FAULTS(thread="yz93/LAVT-RIS#25", codes=("S102",), layers=("1.gate.0", "1.gate.2"), **EITHER)
def gate_of_two_zero_layers():
    model = nn.Sequential(nn.Linear(10, 16), Gate(16), nn.Linear(16, 4))
    return model, torch.randn(40, 10), classify(40, 4)


@FAULTS(thread="yz93/LAVT-RIS#25", codes=("S102",), layers=("0", "2"), **ERROR)
def two_zero_layers_on_the_only_path():
    model = nn.Sequential(
        nn.Linear(10, 16, bias=False),
        nn.ReLU(),
        nn.Linear(16, 16, bias=False),
        nn.Tanh(),
        nn.Linear(16, 4),
    )
    zero_(model[0], model[2])
    return model, torch.randn(40, 10), classify(40, 4)


@FAULTS(thread="deep-cross-attention#2", codes=("S102",), layers=("2.body.0",), **EITHER)
def zero_layer_without_bias_before_relu():
    """The slope at zero is zero: the only zero factor, and it closes the door behind itself."""
    model = nn.Sequential(
        nn.Linear(10, 16),
        nn.Tanh(),
        blocks.Residual(nn.Linear(16, 16, bias=False), nn.ReLU()),
        nn.Linear(16, 4),
    )
    zero_(model[2].body)
    return model, torch.randn(40, 10), classify(40, 4)


@FAULTS(codes=("S102",), layers=("0",), **ERROR)
def zero_first_layer_under_relu():
    model = mlp(10, 32, 4)
    zero_(model[0])
    return model, torch.randn(40, 10), classify(40, 4)


class NoLoRA(blocks.LoRA):
    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__(base, rank)
        nn.init.zeros_(self.A)


@FAULTS(
    thread="circle-hit/SAPT#11, relora#18",
    codes=("S102",),
    layers=("0.A", "0.B", "2.A", "2.B"),
    **ERROR,
)
def lora_with_both_factors_zero():
    model = nn.Sequential(
        NoLoRA(nn.Linear(10, 16)), nn.Tanh(), NoLoRA(nn.Linear(16, 4))
    ).requires_grad_(True)
    for layer in (model[0], model[2]):
        layer.base.requires_grad_(False)
    return model, torch.randn(40, 10), classify(40, 4)


class Product(nn.Module):
    """A parametrization: W + B·A."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.A, self.B = nn.Parameter(torch.zeros(2, inputs)), nn.Parameter(torch.zeros(outputs, 2))

    def forward(self, weight):
        return weight + self.B @ self.A


@FAULTS(
    thread="circle-hit/SAPT#11, relora#18",
    codes=("S102",),
    layers=("0.parametrizations.weight.0.A", "2.parametrizations.weight.0.B"),
    **ERROR,
)
def lora_as_a_parametrization_with_both_factors_zero():
    """The two factors meet before the layer sees them."""
    model = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 4))
    for layer in (model[0], model[2]):
        layer.requires_grad_(False)
        nn.utils.parametrize.register_parametrization(layer, "weight", Product(*layer.weight.shape))
    return model, torch.randn(40, 10), classify(40, 4)


@FAULTS(thread="circle-hit/SAPT#11", codes=("S102",), layers=("1.A", "1.B"), **EITHER)
def one_of_two_adapters_with_both_factors_zero():
    """A sound adapter beside it: what is dead is dead all the same."""
    model = nn.Sequential(
        blocks.LoRA(nn.Linear(10, 16)), NoLoRA(nn.Linear(16, 16)), nn.Tanh(), nn.Linear(16, 4)
    )
    model[3].requires_grad_(False)
    return model, torch.randn(40, 10), classify(40, 4)


@FAULTS(thread="dlrm#358", codes=("P205", "S102"), layers=("0",), **ERROR)
def large_negative_bias_before_relu():
    model = mlp(10, 32, 4)
    nn.init.constant_(model[0].bias, -100.0)
    return model, torch.randn(40, 10), classify(40, 4)


@FAULTS(codes=("S102",), layers=("1.body.1", "1.body.0.weight"), **ERROR)
def large_negative_bias_before_gelu_in_a_branch():
    """In float32 the tail of GELU is exactly zero, and its slope too."""
    body = nn.LayerNorm(16), nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)
    model = nn.Sequential(nn.Linear(10, 16), blocks.Residual(*body), nn.Linear(16, 4))
    nn.init.constant_(body[1].bias, -50.0)
    return model, torch.randn(40, 10), classify(40, 4)


@FAULTS(codes=("P205",), layers=("1.body.1",), **WARNING)
def large_negative_bias_before_silu_in_a_branch():
    """A slope of 1e-20: not zero, and nothing."""
    body = nn.LayerNorm(16), nn.Linear(16, 64), nn.SiLU(), nn.Linear(64, 16)
    model = nn.Sequential(nn.Linear(10, 16), blocks.Residual(*body), nn.Linear(16, 4))
    nn.init.constant_(body[1].bias, -50.0)
    return model, torch.randn(40, 10), classify(40, 4)


@FAULTS(codes=("P205",), layers=("2",), **ERROR)
def large_negative_bias_before_softplus():
    model = mlp(10, 32, 32, 4, act=nn.Softplus)
    nn.init.constant_(model[2].bias, -50.0)
    return model, torch.randn(40, 10), classify(40, 4)


@FAULTS(codes=("P205", "S102"), layers=("2",), **ERROR)
def dead_layer_in_the_middle():
    model = mlp(10, 32, 32, 4)
    nn.init.constant_(model[2].bias, -100.0)
    return model, torch.randn(40, 10), classify(40, 4)


@FAULTS(
    thread="transformers#28298",
    codes=("S101", "S102", "P201", "P203", "P205", "P207"),
    layers=("2",),
    **ERROR,
)
def zero_convolution_in_the_middle():
    """Loaded, all but one layer, whose weight and bias are left at zero."""
    model = nn.Sequential(
        nn.Conv1d(4, 16, 3, padding=1), nn.ReLU(), nn.Conv1d(16, 16, 3, padding=1), nn.ReLU(),
        nn.Conv1d(16, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(160, 4),
    )  # fmt: skip
    zero_(model[2])
    return model, torch.randn(16, 4, 10), classify(16, 4)


@FAULTS(codes=("S102",), layers=("1.body.4", "2.body.4"), **EITHER)
def two_zero_factors_in_each_block():
    """A zero last layer, and a zero scale on top of it: SkipInit and Fixup at once."""

    def block():
        body = mlp(16, 32, 32, 16)
        zero_(body[-1])
        return blocks.Scaled(*body)

    model = nn.Sequential(nn.Linear(10, 16), block(), block(), nn.Linear(16, 4))
    return model, torch.randn(40, 10), classify(40, 4)


@FAULTS(
    thread="objax#94",
    codes=("P207", "P201", "P203", "S101", "S102", "S103"),
    layers=(("1", "0", "4", "3", "7", "6"),),
    **EITHER,
)
def norm_with_scale_and_shift_swapped():
    """γ = 0 and β = 1: every sample leaves the norm as the same vector of ones."""
    model = nn.Sequential(
        nn.Linear(10, 24), nn.LayerNorm(24), nn.ReLU(), nn.Linear(24, 24), nn.LayerNorm(24),
        nn.ReLU(),
        nn.Linear(24, 24), nn.LayerNorm(24), nn.ReLU(), nn.Linear(24, 4),
    )  # fmt: skip
    for norm in (model[1], model[4], model[7]):
        nn.init.zeros_(norm.weight)
        nn.init.ones_(norm.bias)
    return model, torch.randn(40, 10), classify(40, 4)


@FAULTS(thread="objax#94", codes=("P207", "P201", "S101", "S102", "S103"), **EITHER)
def batch_norm_with_scale_and_shift_swapped():
    layers = []
    for n in (10, 24, 24):
        layers += [nn.Linear(n, 24), nn.BatchNorm1d(24), nn.ReLU()]
        nn.init.zeros_(layers[-2].weight)
        nn.init.ones_(layers[-2].bias)
    return nn.Sequential(*layers, nn.Linear(24, 4)), torch.randn(40, 10), classify(40, 4)


@FAULTS(codes=("W501",), layers=("spare",), **WARNING)
def unused_parameter():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.spare = mlp(10, 24, 4), nn.Linear(24, 24)

        def forward(self, x):
            return self.net(x)

    return Net(), torch.randn(40, 10), classify(40, 4)


# ── propagation ──────────────────────────────────────────────────────────────────────────────


@FAULTS(thread="pytorch#18182", codes=("P207", "P201"), **ERROR)
def default_relu_net_of_fifty_layers():
    """Looks alive by its scale; all inputs look the same by layer 50."""
    return mlp(64, *[64] * 49, 5), torch.randn(64, 64), classify(64, 5)


@FAULTS(codes=("P201", "P203"), **EITHER)
def xavier_on_thirty_relu_layers():
    """2^(−15) of the signal is left."""
    model = mlp(64, *[64] * 29, 5)
    for layer in model[::2]:
        nn.init.xavier_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model, torch.randn(64, 64), classify(64, 5)


@FAULTS(codes=("P201", "P203", "P207"), **EITHER)
def tiny_weights_in_a_deep_net():
    """randn × 0.01, ten layers deep."""
    model = mlp(64, *[64] * 9, 5, act=nn.Tanh)
    for layer in model[::2]:
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)
    return model, torch.randn(64, 64), classify(64, 5)


@FAULTS(codes=("P202", "P204", "O301"), **EITHER)
def huge_weights_in_a_deep_relu_net():
    """Each layer multiplies the signal by about 5."""
    model = mlp(64, *[64] * 19, 5)
    for layer in model[::2]:
        nn.init.normal_(layer.weight, std=0.9)
        nn.init.zeros_(layer.bias)
    return model, torch.randn(64, 64), classify(64, 5)


@FAULTS(codes=("P204", "P206"), **ERROR)
def chaotic_tanh_net():
    """σ_w = 4 in 40 tanh layers: a bounded signal, a gradient that grows in each."""
    model = mlp(64, *[64] * 39, 5, act=nn.Tanh)
    for layer in model[::2]:
        nn.init.normal_(layer.weight, std=4 / 8)
        nn.init.zeros_(layer.bias)
    return model, torch.randn(64, 64), classify(64, 5)


@FAULTS(codes=("P203", "P201", "P207"), **ERROR)
def default_sigmoid_net_of_twelve_layers():
    return mlp(20, *[32] * 11, 5, act=nn.Sigmoid), torch.randn(64, 20), classify(64, 5)


@FAULTS(codes=("P206",), layers=("0", "2"), **EITHER)
def sigmoid_net_with_weights_of_ten():
    model = mlp(20, 64, 64, 5, act=nn.Sigmoid)
    for layer in model[::2]:
        nn.init.normal_(layer.weight, std=10.0)
    return model, torch.randn(64, 20), classify(64, 5)


@FAULTS(codes=("P206",), layers=("0", "2"), **EITHER)
def tanh_net_with_weights_of_ten():
    model = mlp(20, 64, 64, 5, act=nn.Tanh)
    for layer in model[::2]:
        nn.init.normal_(layer.weight, std=10.0)
    return model, torch.randn(64, 20), classify(64, 5)


@FAULTS(codes=("P206",), layers=("2",), **EITHER)
def tanh_net_with_weights_of_one():
    """A standard normal, 256 wide: pre-activations of ±16."""
    model = mlp(20, 256, 256, 5, act=nn.Tanh)
    for layer in model[:4:2]:
        nn.init.normal_(layer.weight, std=1.0)
    return model, torch.randn(64, 20), classify(64, 5)


@FAULTS(codes=("P206",), layers=("mean",), **ERROR)
def actor_whose_actions_are_at_their_bounds():
    """Noise is added to what a layer gives, and tanh bounds the sum."""
    actor = Actor()
    with torch.no_grad():
        actor.mean.weight.mul_(300)
    wanted = torch.rand(64, 3) - 0.5
    return actor, torch.randn(64, 8), lambda action: F.mse_loss(action, wanted)


@FAULTS(codes=("P206",), layers=("2",), **ERROR)
def actor_whose_bounded_actions_are_scaled():
    """tanh, and numbers: a formula with one bend is as flat as that bend."""

    class Scaled(nn.Module):
        def forward(self, x):
            return 2.0 * torch.tanh(x) + 0.5

    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3), Scaled(), nn.Linear(3, 3))
    with torch.no_grad():
        model[2].weight.mul_(300)
    return model, torch.randn(64, 8), classify(64, 3)


class _ReadAtItsEnd(nn.Module):
    """A recurrent network, a whole sequence at once or step by step."""

    def __init__(self, cell, width, **kwargs):
        super().__init__()
        self.rnn, self.head = cell(6, width, **kwargs), nn.Linear(width, 3)

    def forward(self, x):
        if isinstance(self.rnn, nn.RNNBase):
            return self.head(self.rnn(x)[0][:, -1])
        state = None
        for step in x.unbind(1):
            state = self.rnn(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


def _large_input_weights(cell, **kwargs):
    model = _ReadAtItsEnd(cell, 24, **kwargs)
    with torch.no_grad():
        getattr(model.rnn, "weight_ih", getattr(model.rnn, "weight_ih_l0", None)).mul_(100)
    return model, torch.randn(32, 9, 6), classify(32, 3)


@FAULTS(codes=("P206",), layers=("rnn",), **ERROR)
def lstm_with_gates_in_their_flat_part():
    return _large_input_weights(nn.LSTM, batch_first=True)


@FAULTS(codes=("P206",), layers=("rnn",), **ERROR)
def lstm_cell_with_gates_in_their_flat_part():
    return _large_input_weights(nn.LSTMCell)


@FAULTS(codes=("P206",), layers=("rnn",), **ERROR)
def gru_cell_with_gates_in_their_flat_part():
    return _large_input_weights(nn.GRUCell)


@FAULTS(codes=("P206",), layers=("rnn",), **ERROR)
def rnn_cell_in_its_flat_part():
    return _large_input_weights(nn.RNNCell)


def _chaotic_state(cell, std, steps=24, **kwargs):
    """A matrix so large that near states part at every step."""
    model = _ReadAtItsEnd(cell, 32, **kwargs)
    for name, parameter in model.rnn.named_parameters():
        if "weight_hh" in name:
            nn.init.normal_(parameter, std=std)
    return model, torch.randn(32, steps, 6), classify(32, 3)


_STEPS = {"codes": ("P204",), "words": ("step by step",)}


@FAULTS(layers=("rnn.weight_hh_l0",), **_STEPS, **ERROR)
def chaotic_rnn():
    """A bounded state, and a gradient that grows from step to step: nothing is learned."""
    return _chaotic_state(nn.RNN, 1.0, batch_first=True)


@FAULTS(layers=("rnn.weight_hh_l0",), **_STEPS, **ERROR)
def chaotic_lstm():
    return _chaotic_state(nn.LSTM, 3.0, batch_first=True)


@FAULTS(layers=("rnn.weight_hh_l0",), **_STEPS, **ERROR)
def gru_that_is_chaotic_over_many_steps():
    """Over 20 it learns half of what it should, over 60 nothing."""
    return _chaotic_state(nn.GRU, 1.0, steps=60, batch_first=True)


@FAULTS(layers=("rnn",), **_STEPS, **ERROR)
def chaotic_rnn_cell():
    return _chaotic_state(nn.RNNCell, 1.0)


@FAULTS(layers=("state",), **_STEPS, **ERROR)
def chaotic_state_by_hand():
    return Stepwise(std=1.0), torch.randn(32, 24, 6), classify(32, 3)


def _shut_gates(cell, gate, value):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = cell(6, 24, batch_first=True), nn.Linear(24, 3)
            with torch.no_grad():
                self.rnn.bias_ih_l0[24 * gate : 24 * gate + 24] = value

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    return Net(), torch.randn(32, 9, 6), classify(32, 3)


@FAULTS(codes=("P207",), layers=("head",), **ERROR)
def lstm_whose_input_gates_are_shut():
    """Nothing enters the state, and the output is the bias of the head."""
    return _shut_gates(nn.LSTM, 0, -100.0)


@FAULTS(codes=("P207",), layers=("head",), **ERROR)
def gru_whose_update_gates_keep_the_state():
    return _shut_gates(nn.GRU, 1, 100.0)


class _Gate(nn.Module):
    def __init__(self, scale, offset):
        super().__init__()
        self.gate, self.body, self.head = (nn.Linear(16, n) for n in (16, 16, 3))
        nn.init.normal_(self.gate.weight, std=scale / 4)
        nn.init.constant_(self.gate.bias, offset)

    def forward(self, x):
        return self.head(x + torch.sigmoid(self.gate(x)) * torch.tanh(self.body(x)))


@FAULTS(codes=("P206",), layers=("gate",), **WARNING)
def gate_in_its_flat_part():
    """Most values lie beyond ± 4.4, on either side: it is the weights that put them there."""
    return _Gate(40.0, 0.0), torch.randn(64, 16), classify(64, 3)


@FAULTS(codes=("P206",), layers=("gate",), **WARNING)
def gate_shut_for_good():
    """sigmoid(−100): no gradient is left of it."""
    return _Gate(1.0, -100.0), torch.randn(64, 16), classify(64, 3)


@FAULTS(codes=("P206",), layers=("1.wide", "2.wide"), words=("biases",), **WARNING)
def gated_linear_units_shut_for_good():
    """Half of the bias of a Conformer's first convolution is that of its gates."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.wide = nn.LayerNorm(24), nn.Conv1d(24, 48, 1)
            self.deep = nn.Conv1d(24, 24, 5, padding=2, groups=24)
            self.out = nn.Conv1d(24, 24, 1)
            nn.init.constant_(self.wide.bias[24:], -30.0)

        def forward(self, x):
            h = F.glu(self.wide(self.norm(x).transpose(1, 2)), 1)
            return x + self.out(F.silu(self.deep(h))).transpose(1, 2)

    model = nn.Sequential(nn.Linear(8, 24), Block(), Block(), nn.Linear(24, 2))
    return model, torch.randn(16, 20, 8), regress(16, 20, 2)


@FAULTS(codes=("O301",), layers=("log_variance",), words=("unit size",), **WARNING)
def log_variance_that_starts_at_twenty():
    """Of a loss that is not known: it is 4e7 times that of the same outputs at unit size."""
    model = blocks.Variational()
    nn.init.constant_(model.log_variance.bias, 20.0)
    batch = torch.randn(64, 16)
    return model, batch, model.loss


@FAULTS(codes=("P206",), layers=("1.wide", "2.wide"), words=("shut",), **WARNING)
def gates_beside_units_that_are_bent_first():
    """x + W(tanh(a) σ(b)), as in a WaveNet, where one layer makes a and b."""
    model = nn.Sequential(nn.Linear(8, 24), *(blocks.Bent(24, -30.0) for _ in range(2)))
    return model.append(nn.Linear(24, 2)), torch.randn(64, 8), regress(64, 2)


@FAULTS(codes=("P206",), layers=("0", "4"), words=("layer 0 are so large",), **ERROR)
def large_layer_in_front_of_a_tanh():
    """The layer in front of the tanh is as it should be."""
    model = mlp(16, 32, 32, 32, 3)
    model[5] = nn.Tanh()
    with torch.no_grad():
        model[0].weight.mul_(1000)
    return model, torch.randn(64, 16), classify(64, 3)


@FAULTS(codes=("P206",), layers=("state",), **EITHER)
def recurrence_by_hand_in_its_flat_part():
    """Its first step starts from zeros, and is not."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.given, self.state = nn.Linear(8, 24), nn.Linear(24, 24, bias=False)
            self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 3)
            nn.init.normal_(self.state.weight, std=20.0)

        def forward(self, x):
            given = self.given(x)
            state = torch.zeros_like(given)
            for _ in range(6):
                state = torch.tanh(self.state(state.detach()) + given)
            return self.head(self.norm(state))

    return Net(), torch.randn(64, 8), classify(64, 3)


@FAULTS(codes=("P206",), layers=("0", "2"), **EITHER)
def hardtanh_net_with_weights_of_ten():
    """Beyond its bounds of ± 2 on either side."""
    model = mlp(20, 64, 64, 5, act=lambda: nn.Hardtanh(-2.0, 2.0))
    for layer in model[::2]:
        nn.init.normal_(layer.weight, std=10.0)
    return model, torch.randn(64, 20), classify(64, 5)


@FAULTS(codes=("P205",), layers=("0",), **ERROR)
def dead_threshold_units():
    model = mlp(20, 64, 5, act=lambda: nn.Threshold(0.1, 0.0))
    nn.init.constant_(model[0].bias, -9.0)
    return model, torch.randn(64, 20), classify(64, 5)


@FAULTS(codes=("P205",), layers=("0",), **ERROR)
def dead_steep_softplus_units():
    """softplus(β = 5) is flat below −3.2."""
    model = mlp(20, 64, 5, act=lambda: nn.Softplus(beta=5.0))
    nn.init.constant_(model[0].bias, -9.0)
    return model, torch.randn(64, 20), classify(64, 5)


class _Film(nn.Module):
    """A body behind h · (1 + g(x)) + b(x) with g and b at zero, and what `way` does to it later."""

    def __init__(self, mixed):
        super().__init__()
        self.inlet, self.gate, self.offset = (nn.Linear(16, 32) for _ in range(3))
        zero_(self.gate)
        zero_(self.offset)
        self.body, self.head, self.mixed = mlp(32, 32, 32, 32), nn.Linear(32, 3), mixed

    def forward(self, x):
        return self.head(self.body(self.mixed(self.inlet(x), self.gate(x), self.offset(x))).relu())


def _behind_film(damage, mixed):
    model = _Film(mixed)
    with torch.no_grad():
        damage(model)
    return model, torch.randn(64, 16), classify(64, 3)


def _flood(model):
    model.body[2].bias.normal_(std=1e6)


def _starve(model):
    for layer in model.body[::2]:
        layer.weight.mul_(0.02)


@FAULTS(codes=("P207",), layers=("body.2",), **ERROR)
def collapse_behind_a_zero_modulation():
    return _behind_film(_flood, lambda h, g, b: h * (1 + g) + b)


@FAULTS(codes=("P203", "P201"), **ERROR)
def vanishing_behind_a_zero_modulation():
    return _behind_film(_starve, lambda h, g, b: h * (1 + g) + b)


@FAULTS(codes=("P207",), layers=("body.2",), **ERROR)
def collapse_behind_a_mixture_of_equal_parts():
    return _behind_film(_flood, lambda h, g, b: g.sigmoid() * h + (1 - g.sigmoid()) * b)


@FAULTS(codes=("P207",), layers=("drown",), **ERROR)
def collapse_behind_a_recurrence_that_starts_at_zero():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.drown = nn.RNN(6, 24, batch_first=True), nn.Linear(24, 24)
            self.head = nn.Linear(24, 3)
            nn.init.zeros_(self.rnn.weight_hh_l0)
            nn.init.normal_(self.drown.bias, std=1e6)

        def forward(self, x):
            return self.head(self.drown(self.rnn(x)[0][:, -1]).relu())

    return Net(), torch.randn(32, 9, 6), classify(32, 3)


@FAULTS(codes=("P207",), layers=("drown",), **ERROR)
def collapse_behind_a_merged_adapter_at_zero():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.delta = (
                nn.Parameter(torch.randn(24, 6) / 2),
                nn.Parameter(torch.zeros(24, 6)),
            )
            self.drown, self.head = nn.Linear(24, 24), nn.Linear(24, 3)
            nn.init.normal_(self.drown.bias, std=1e6)

        def forward(self, x):
            return self.head(self.drown(F.linear(x, self.weight + self.delta).relu()).relu())

    return Net(), torch.randn(32, 6), classify(32, 3)


@FAULTS(codes=("P207", "P206"), **ERROR)
def gates_without_a_way_around_them():
    """h = σ(g(h)) · b(h), three times, with gates that biases of −8 shut."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.gates, self.bodies = (
                nn.ModuleList(nn.Linear(32, 32) for _ in range(3)) for _ in range(2)
            )
            self.inlet, self.head = nn.Linear(16, 32), nn.Linear(32, 3)
            for gate in self.gates:
                nn.init.constant_(gate.bias, -8.0)

        def forward(self, x):
            x = self.inlet(x)
            for gate, body in zip(self.gates, self.bodies, strict=True):
                x = gate(x).sigmoid() * body(x).tanh()
            return self.head(x)

    return Net(), torch.randn(64, 16), classify(64, 3)


@FAULTS(codes=("P207",), layers=("3",), **ERROR)
def collapse_behind_a_small_table_and_a_norm():
    model = nn.Sequential(
        nn.Embedding(40, 32), blocks.Lambda(lambda x: x.flatten(1)), nn.LayerNorm(96),
        nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 3),
    )  # fmt: skip
    nn.init.uniform_(model[0].weight, -1e-4, 1e-4)
    nn.init.normal_(model[3].bias, std=1e6)
    return model, torch.randint(0, 40, (64, 3)), classify(64, 3)


def _small_tables(behind, size=1e-6):
    """Two tables in front of a layer whose biases are of the usual size."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.kinds = nn.Embedding(40, 16), nn.Embedding(4, 16)
            self.body, self.head = behind(), nn.Linear(32, 5)
            with torch.no_grad():
                self.words.weight.mul_(size)
                self.kinds.weight.mul_(size)

        def forward(self, tokens):
            states = self.body(self.words(tokens) + self.kinds(tokens % 4))
            return self.head((states[0] if isinstance(states, tuple) else states)[:, -1])

    return Net(), torch.randint(0, 40, (64, 3)), classify(64, 5)


@FAULTS(codes=("P207",), layers=("words", "kinds"), words=("rms of 1e-06",), **WARNING)
def tables_next_to_zero_in_front_of_biases():
    """Adam trains it as if the tables were of their usual size, SGD takes longer."""
    return _small_tables(lambda: nn.Sequential(nn.Linear(16, 32), nn.ReLU()))


@FAULTS(codes=("P207",), layers=("words", "kinds"), **WARNING)
def tables_next_to_zero_in_front_of_an_lstm():
    return _small_tables(lambda: nn.LSTM(16, 32, batch_first=True))


@FAULTS(codes=("P207",), **WARNING)
def tied_table_next_to_zero():
    """The head is the table again: one weight, not two in a row."""
    model = blocks.LanguageModel(tied=True)
    with torch.no_grad():
        model.tokens.weight.mul_(1e-6)
    tokens = torch.randint(0, 101, (8, 12))
    return model, tokens, blocks.next_token(tokens)


def _small_table_before_dropout(times: float):
    """It takes other parts of the biases from each sample, which is no signal that grows."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(40, 16), nn.Linear(48, 5)
            self.convs = nn.ModuleList(nn.Conv1d(16, 24, k) for k in (2, 3))
            with torch.no_grad():
                self.embed.weight.mul_(1e-6)
                for layer in (self.head, *self.convs):
                    layer.weight.mul_(times)

        def forward(self, tokens):
            x = self.embed(tokens).mT
            x = torch.cat([conv(x).relu().amax(2) for conv in self.convs], 1)
            return self.head(F.dropout(x, 0.5, self.training))

    return Net(), torch.randint(0, 40, (64, 8)), classify(64, 5)


@FAULTS(
    codes=("P207",),
    layers=("embed",),
    words=("though no layer between them is large",),
    absent=("P202",),
    **WARNING,
)
def table_next_to_zero_in_front_of_dropout():
    return _small_table_before_dropout(1.0)


@FAULTS(codes=("P207",), layers=("embed",), absent=("P202",), **WARNING)
def table_next_to_zero_in_front_of_an_lstm_with_dropout():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Embedding(50, 32), nn.Linear(48, 5)
            self.rnn = nn.LSTM(32, 48, 2, batch_first=True, dropout=0.5)
            with torch.no_grad():
                self.embed.weight.mul_(1e-6)

        def forward(self, tokens):
            return self.out(self.rnn(self.embed(tokens))[0][:, -1])

    return Net(), torch.randint(0, 50, (64, 12)), classify(64, 5)


@FAULTS(codes=("P202",), layers=("head",), **ERROR)
def large_weights_behind_a_table_next_to_zero():
    """These do grow what differs."""
    return _small_table_before_dropout(300.0)


@FAULTS(codes=("P207",), layers=("last.bias",), **ERROR)
def both_layers_of_a_graph_network_next_to_zero():
    """Each keeps the gradient from the other: 1.10 where either alone trains to 0.37 or 0.46."""
    return blocks.graph_network(1e-6, 1e-6)


@FAULTS(codes=("P207",), **ERROR)
def gates_next_to_zero_that_are_multiplied():
    """Saddle: either factor is what moves the other."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = (nn.Linear(16, 16, bias=False) for _ in range(2))
            self.shift, self.head = nn.Parameter(torch.randn(16)), nn.Linear(16, 5)
            with torch.no_grad():
                self.first.weight.mul_(1e-6)
                self.second.weight.mul_(1e-6)

        def forward(self, x):
            return self.head((x * self.first(x) * self.second(x) + self.shift).relu())

    return Net(), torch.randn(64, 16), classify(64, 5)


# ── residual streams ─────────────────────────────────────────────────────────────────────────


@FAULTS(codes=("P208",), layers=("tokens", "positions"), **ERROR)
def embedding_that_drowns_the_positions():
    model = blocks.LanguageModel(tied=False)
    nn.init.normal_(model.tokens.weight, std=10_000.0)
    tokens = torch.randint(0, 101, (8, 12))
    return model, tokens, blocks.next_token(tokens)


@FAULTS(codes=("P208",), layers=("0", "1.body.3"), **WARNING)
def raw_timestamps_in_a_residual_stream():
    """Seconds of a day, into a first layer of the usual size."""
    body = [
        blocks.Residual(nn.LayerNorm(24), nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))
        for _ in range(4)
    ]
    model = nn.Sequential(nn.Linear(3, 24), *body, nn.LayerNorm(24), nn.Linear(24, 5))
    return model, 86_400 * torch.rand(64, 3), classify(64, 5)


@FAULTS(codes=("P208",), layers=("first",), **WARNING)
def raw_numbers_beside_a_lookup():
    """The batch is what is large, so it is no error."""

    class Tabular(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.kinds = nn.Linear(8, 64), nn.Embedding(5, 64)
            self.norm, self.last = nn.LayerNorm(64), nn.Linear(64, 3)

        def forward(self, x, kind):
            return self.last(self.norm(self.first(x) + self.kinds(kind)))

    return Tabular(), (3000 * torch.rand(64, 8), torch.randint(0, 5, (64,))), classify(64, 3)


@FAULTS(codes=("P208",), layers=("tokens", "positions"), **WARNING)
def loud_embedding_beside_positions():
    model = blocks.LanguageModel(tied=False)
    nn.init.normal_(model.tokens.weight, std=150.0)
    tokens = torch.randint(0, 101, (8, 12))
    return model, tokens, blocks.next_token(tokens)


def _among_positions(size: float, *, tied: bool = True, tokens: float = 0.02):
    model = blocks.LanguageModel(tied=tied)
    nn.init.normal_(model.tokens.weight, std=tokens)
    nn.init.normal_(model.positions.weight, std=size)
    batch = torch.randint(0, 101, (8, 12))
    return model, batch, blocks.next_token(batch)


@FAULTS(codes=("P208",), layers=("positions", "tokens"), words=("tokens is lost",), **WARNING)
def positions_left_as_torch_draws_them_beside_tokens_of_a_head():
    """nanoGPT whose positions stay N(0, 1): ln V for 300 steps of 600."""
    return _among_positions(1.0)


@FAULTS(codes=("P208",), layers=("positions", "tokens"), **ERROR)
def positions_a_hundred_times_as_large_as_tokens_of_a_head():
    return _among_positions(3.0)


@FAULTS(codes=("P208",), layers=("positions", "tokens"), **ERROR)
def positions_that_drown_tokens_with_a_head_of_their_own():
    return _among_positions(20.0, tied=False)


@FAULTS(codes=("P208",), layers=("positions", "tokens"), **WARNING)
def positions_that_drown_tokens_of_variance_one():
    return _among_positions(60.0, tied=False, tokens=1.0)


class Patches(nn.Module):
    """A vision transformer: patches, a class token, and positions that are a parameter."""

    def __init__(self, size: float):
        super().__init__()
        self.patch, self.token = nn.Linear(12, 32), nn.Parameter(torch.zeros(1, 1, 32))
        self.places = nn.Parameter(size * torch.randn(1, 17, 32))
        self.blocks = nn.Sequential(*(blocks.Block(32, 4) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 4)

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), self.patch(x)], 1) + self.places
        return self.head(self.norm(self.blocks(x)).mean(1))


@FAULTS(codes=("P208",), layers=("places", "patch"), **ERROR)
def positions_that_drown_the_patches():
    return Patches(100.0), torch.randn(16, 16, 12), classify(16, 4)


# ── the loss at the start ────────────────────────────────────────────────────────────────────


class Tied(nn.Module):
    """Embedding, a small net, and the embedding again as the head."""

    def __init__(self, vocabulary: int, width: int, norm: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.net = blocks.Residual(nn.Linear(width, width), nn.GELU())
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.norm(self.net(self.embed(tokens))))


@FAULTS(thread="transformers#26441", codes=("O301",), layers=(("head", "embed", ""),), **EITHER)
def tied_head_of_variance_one():
    """Logits of standard deviation 16; chance is ln 1000."""
    model = Tied(1000, 256, norm=True)
    tokens = torch.randint(0, 1000, (8, 12))
    return model, tokens, blocks.next_token(tokens)


@FAULTS(thread="pytorch#3121", codes=("O301",), layers=(("head", "embed", ""),), **EITHER)
def embedding_of_variance_one():
    model = Tied(500, 64, norm=False)
    tokens = torch.randint(0, 500, (8, 12))
    return model, tokens, blocks.next_token(tokens)


@FAULTS(codes=("O301",), **EITHER)
def head_that_shouts():
    """A head a hundred times too large."""
    model = mlp(20, 64, 10, act=nn.Tanh)
    nn.init.normal_(model[2].weight, std=10.0)
    return model, torch.randn(64, 20), classify(64, 10)


# ── numbers ──────────────────────────────────────────────────────────────────────────────────


def with_values(change, act=nn.Tanh):
    def build():
        model = mlp(20, 32, 32, 5, act=act)
        with torch.no_grad():
            change(model[2].weight)
        return model, torch.randn(32, 20), classify(32, 5)

    return build


NUMBERS = {"layers": (("2", "2.weight"),), **EITHER}


def leftover_bits(weight):
    """Random bits, as a freed page holds them; the NaN among them kept out."""
    bits = torch.randint(-(2**31), 2**31, (4 * weight.numel(),)).to(torch.int32).view(torch.float32)
    weight.copy_(bits[bits.isfinite()][: weight.numel()].view_as(weight))


def leftover_pointers(weight):
    """A page of small integers and halves of addresses, read as floats: denormals and zeros."""
    words = torch.zeros(weight.numel(), dtype=torch.int32)
    words[::2] = torch.randint(1, 2**20, (len(words[::2]),)).to(torch.int32)
    words[1::2] = 32_000 + torch.randint(0, 300, (len(words[1::2]),)).to(torch.int32)
    weight.copy_(words.view(torch.float32).view_as(weight))


def leftover_numbers(weight):
    """A page of ordinary numbers, with a few enormous ones between them."""
    weight.view(-1)[::37] = 1e30
    weight.view(-1)[1::53] = -3e22


FAULTS.add(
    "torch-empty-nan",
    with_values(lambda weight: weight.view(-1)[::7].fill_(float("nan"))),
    thread="transformers#30953, CLIP#15",
    codes=("N401", "N402"),
    layers=(("2", "2.weight"),),
    **ERROR,
)
FAULTS.add(
    "torch-empty-infinite",
    with_values(lambda weight: weight.view(-1)[5].fill_(float("inf"))),
    thread="transformers#30953, CLIP#15",
    codes=("N401", "N402"),
    layers=(("2", "2.weight"),),
    **ERROR,
)
FAULTS.add(
    "torch-empty-random-bits",
    with_values(leftover_bits),
    thread="transformers#30953, CLIP#15",
    codes=("N402", "N401"),
    **NUMBERS,
)
FAULTS.add(
    "torch-empty-denormal",
    with_values(leftover_pointers),
    thread="transformers#30953, CLIP#15",
    codes=("N402",),
    **NUMBERS,
)
FAULTS.add(
    "torch-empty-huge",
    with_values(leftover_numbers),
    thread="transformers#30953, CLIP#15",
    codes=("N402", "N401"),
    **NUMBERS,
)
FAULTS.add(
    "torch-empty-huge-in-a-relu-net",
    with_values(leftover_numbers, act=nn.ReLU),
    codes=("N402", "N401"),
    layers=(("2", "2.weight"),),
    **ERROR,
)


@FAULTS(
    thread="transformers#30953, CLIP#15",
    codes=("N401", "N402"),
    layers=(("scale", ""), "net.2.weight"),
    watched=True,
    **EITHER,
)
def torch_empty_as_it_happened():
    """Two parameters that nobody writes; what they hold is an accident of this process."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp(10, 24, 4, act=nn.Tanh)
            self.net[2].weight = nn.Parameter(torch.empty(4, 24))
            self.scale = nn.Parameter(torch.empty(10))

        def forward(self, x):
            return self.net(x * (1 + torch.nan_to_num(self.scale, 0, 0, 0).clamp(-1, 1)))

    return Net(), torch.randn(32, 10), classify(32, 4)


@FAULTS(
    thread="TransformerLens#902",
    codes=("N401",),
    layers=("2.weight",),
    words=("3",),
    **ERROR,
)
def three_nan_in_one_weight():
    def three(weight):
        weight[4, 5] = weight[11, 0] = weight[30, 31] = float("nan")

    return with_values(three)()


@FAULTS(codes=("N401",), layers=("1.weight",), words=("1",), **ERROR)
def nan_in_the_scale_of_a_norm():
    model = nn.Sequential(nn.Linear(10, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 4))
    with torch.no_grad():
        model[1].weight[3] = float("nan")
    return model, torch.randn(32, 10), classify(32, 4)


@FAULTS(codes=("N403",), **ERROR)
def logarithm_of_negative_numbers():
    """All parameters are finite; the first operation that is not is the logarithm."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(10, 24), nn.Linear(24, 4)

        def forward(self, x):
            return self.b(torch.log(self.a(x)))

    return Net(), torch.randn(32, 10), classify(32, 4)


@FAULTS(codes=("N403", "P202"), **ERROR)
def overflow_in_a_deep_net():
    """Factor 100 per layer: past the range of float32 after twenty."""
    model = mlp(64, *[64] * 29, 5)
    for layer in model[::2]:
        nn.init.normal_(layer.weight, std=20.0)
        nn.init.zeros_(layer.bias)
    return model, torch.randn(32, 64), classify(32, 5)


@FAULTS(codes=("N404",), layers=("0",), options={"dtype": "float16"}, **EITHER)
def past_the_range_of_float16():
    """1e5 and more before the norm, which float32 takes and float16 does not."""
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.LayerNorm(32), nn.Linear(32, 4))
    with torch.no_grad():
        model[0].weight.mul_(1e6)
    return model, torch.randn(32, 20), classify(32, 4)


@FAULTS(codes=("N404",), layers=("0",), options={"dtype": torch.float16}, **EITHER)
def past_the_range_of_float16_as_a_dtype():
    return past_the_range_of_float16()


# ── wiring ───────────────────────────────────────────────────────────────────────────────────


@FAULTS(
    thread="pytorch#166378",
    codes=("W502",),
    layers=(("attention", "attention.in_proj_weight"),),
    severities=("warning", "info"),
    ok=True,
)
def packed_projection_of_multihead_attention():
    """nn.MultiheadAttention draws [3E, E] by Xavier, √2 too small for each of its three."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
            self.head = nn.Linear(64, 3)

        def forward(self, x):
            return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))

    return Net(), torch.randn(8, 7, 64), classify(8, 3)


@FAULTS(thread="pytorch#166378", codes=("W502",), layers=("0.body.qkv",), **WARNING)
def packed_projection_by_hand(draw=nn.init.xavier_uniform_, project=nn.Linear):
    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = project(64, 192), nn.Linear(64, 64)
            draw(self.qkv.weight)
            nn.init.zeros_(self.qkv.bias)

        def forward(self, x):
            q, k, v = self.qkv(x).chunk(3, -1)
            return self.out(F.scaled_dot_product_attention(q, k, v))

    class Join(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = Body()

        def forward(self, x):
            return x + self.body(x)

    model = nn.Sequential(Join(), blocks.Lambda(lambda x: x.mean(1)), nn.Linear(64, 3))
    return model, torch.randn(8, 7, 64), classify(8, 3)


@FAULTS(thread="pytorch#166378", codes=("W502",), layers=("0.body.qkv",), **WARNING)
def packed_projection_by_hand_of_normals():
    return packed_projection_by_hand(nn.init.xavier_normal_)


class Turned(nn.Module):
    """x @ W + b, W [inputs, outputs], as the Conv1D of GPT-2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x):
        return x @ self.weight + self.bias


@FAULTS(thread="pytorch#166378", codes=("W502",), layers=("0.body.qkv",), **WARNING)
def packed_projection_by_hand_of_the_other_layout():
    return packed_projection_by_hand(project=Turned)


class Truncated(nn.Linear):
    """Means to cut at ±2σ and cuts at ±2, which is 100σ."""

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)


class Vocoder(nn.Sequential):
    """Weight norm first, its own initialization after it."""

    def __init__(self) -> None:
        layers = [nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)) for _ in range(2)]
        super().__init__(layers[0], nn.ReLU(), layers[1], nn.ReLU(), nn.Linear(16, 4))
        nn.init.normal_(self[0].weight, std=0.01)


@FAULTS(
    thread="pytorch#180968, hifi-gan#145",
    codes=("W504",),
    layers=("0.parametrizations.weight",),
    absent=("W503",),
    watched=True,
    **WARNING,
)
def normal_init_after_weight_norm():
    return Vocoder(), torch.randn(32, 16), classify(32, 4)


@FAULTS(
    thread="hifi-gan#145",
    codes=("W504",),
    layers=("0.parametrizations.weight",),
    watched=True,
    **WARNING,
)
def data_drawn_after_weight_norm():
    """As vocoders do it: `.data` is another tensor, of the same memory."""
    first = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(16, 4))
    first.weight.data.normal_(0, 0.01)
    return model, torch.randn(32, 16), classify(32, 4)


@FAULTS(codes=("W504",), layers=("0.parametrizations.weight",), watched=True, **WARNING)
def weight_drawn_without_gradients_after_weight_norm():
    """What is computed under no_grad has no record of what it is computed from."""
    first = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))
    with torch.no_grad():
        first.weight.normal_(0, 0.01)
    return nn.Sequential(first, nn.ReLU(), nn.Linear(16, 4)), torch.randn(32, 16), classify(32, 4)


@FAULTS(
    codes=("W504",),
    layers=("0.parametrizations.weight", "2.parametrizations.weight"),
    watched=True,
    **WARNING,
)
def orthogonal_and_he_after_weight_norm():
    """Initializers that torch shows as one call, or that draw aside and copy."""
    layers = [nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)) for _ in range(2)]
    nn.init.orthogonal_(layers[0].weight)
    nn.init.kaiming_uniform_(layers[1].weight)
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), nn.Linear(16, 4))
    return model, torch.randn(32, 16), classify(32, 4)


@FAULTS(
    codes=("W504",),
    layers=tuple(f"{i}.parametrizations.weight" for i in (0, 2, 4)),
    watched=True,
    **WARNING,
)
def numbers_set_in_weights_that_are_computed():
    """Initializers by constants, and a copy: nothing is drawn."""
    layers = [nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)) for _ in range(3)]
    nn.init.eye_(layers[0].weight)
    nn.init.constant_(layers[1].weight, 0.1)
    layers[2].weight.data.copy_(torch.randn(16, 16))
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    return model, torch.randn(32, 16), classify(32, 4)


@FAULTS(
    thread="torchtitan#3334",
    codes=("W503",),
    severities=("warning", "info"),
    layers=(("0", "0.weight"), ("2", "2.weight")),
    ok=True,
    watched=True,
)
def truncation_at_a_hundred_sigma():
    model = nn.Sequential(
        Truncated(128, 256), nn.GELU(), Truncated(256, 256), nn.LayerNorm(256), nn.Linear(256, 4)
    )
    return model, torch.randn(16, 128), classify(16, 4)


@FAULTS(thread="pytorch#145498, #155588", codes=("W505",), layers=("0",), **WARNING)
def outliers_at_the_bound():
    """Five entries of exactly ±2 in a weight of σ = 0.02."""
    model = nn.Sequential(nn.Linear(128, 256), nn.GELU(), nn.Linear(256, 4))
    with torch.no_grad():
        model[0].weight.normal_(std=0.02).view(-1)[[3, 999, 7000, 20000, 31000]] = torch.tensor(
            [2.0, -2, 2, 2, -2]
        )
    return model, torch.randn(16, 128), classify(16, 4)


@FAULTS(thread="pytorch#155588", codes=("W505",), layers=("0",), **WARNING)
def tail_samples_clamped_to_a_far_bound():
    """One sample in two thousand ended at the bound of 20σ."""
    model = nn.Sequential(nn.Linear(128, 256), nn.GELU(), nn.Linear(256, 4))
    with torch.no_grad():
        weight = model[0].weight.normal_(std=0.05).view(-1)
        weight[::2000] = weight[::2000].sign()
    return model, torch.randn(16, 128), classify(16, 4)


@FAULTS(thread="transformers#40796", ok=True)
def one_plus_gamma_norm_started_at_one():
    """A warning at most: each norm doubles."""
    from zoo.traps import one_plus_gamma_norm_started_at_one as build

    return build()


@FAULTS(codes=("S102",), layers=("q", "k"), **ERROR)
def queries_and_keys_both_zero():
    """Side by side, they meet in a product: each one's gradient is a product with the other."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
            zero_(self.q)
            zero_(self.k)

        def forward(self, x):
            q, k, v = self.q(x), self.k(x), self.v(x)
            return x + self.o(F.scaled_dot_product_attention(q, k, v))

    return Net(), torch.randn(4, 6, 16)


def frozen_zero(*parameters: nn.Parameter) -> None:
    for parameter in parameters:
        nn.init.zeros_(parameter).requires_grad_(False)


@FAULTS(codes=("S102",), layers=("4", "0", "2"), words=("a frozen zero (4.weight)",), **ERROR)
def frozen_zero_readout():
    """Its bias learns, and nothing before it ever does."""
    model = mlp(20, 32, 32, 5)
    frozen_zero(model[4].weight)
    return model, torch.randn(32, 20), classify(32, 5)


@FAULTS(codes=("S102",), layers=("2", "0"), words=("a frozen zero (2.weight)",), **ERROR)
def frozen_zero_in_the_middle():
    model = mlp(20, 32, 32, 5, act=nn.Tanh)
    frozen_zero(model[2].weight)
    return model, torch.randn(32, 20), classify(32, 5)


@FAULTS(codes=("S102",), layers=("0.A", "0.B", "2.A", "2.B"), **ERROR)
def lora_whose_frozen_factor_is_zero():
    """Everything that may learn is an adapter, and no adapter can."""
    model = nn.Sequential(blocks.LoRA(nn.Linear(10, 16)), nn.Tanh(), blocks.LoRA(nn.Linear(16, 4)))
    frozen_zero(model[0].A, model[2].A)
    return model, torch.randn(32, 10), classify(32, 4)


@FAULTS(codes=("S102",), layers=("1.body.3", "1.body.0"), words=("1.body.3.weight",), **WARNING)
def branch_switched_off_with_trainable_layers_inside():
    """Maybe on purpose, as the stream goes around it; but its layers never move."""
    body = nn.LayerNorm(16), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)
    model = nn.Sequential(nn.Linear(10, 16), blocks.Residual(*body), nn.Linear(16, 4))
    frozen_zero(body[3].weight, body[3].bias)
    return model, torch.randn(32, 10), classify(32, 4)


@FAULTS(codes=("S102",), layers=("k",), words=("a frozen zero (q.weight)",), **WARNING)
def queries_frozen_at_zero():
    """Every score is zero whatever the keys are; values and the stream learn."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
            zero_(self.q)
            self.q.requires_grad_(False)

        def forward(self, x):
            q, k, v = self.q(x), self.k(x), self.v(x)
            return x + self.o(F.scaled_dot_product_attention(q, k, v))

    return Net(), torch.randn(4, 6, 16)


@FAULTS(codes=("S102",), layers=("1",), absent=("P205",), **ERROR)
def batch_norm_closed_before_relu():
    """The norm's zero scale is the cause, not the linear layer before it."""
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    nn.init.zeros_(model[1].weight)
    return model, torch.randn(32, 8), classify(32, 4)


@FAULTS(codes=("N403",), words=("exp",), **ERROR)
def head_that_overflows_an_exponential():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.head = nn.Linear(8, 16), nn.Linear(16, 4)
            nn.init.normal_(self.head.weight, std=100)

        def forward(self, x):
            return self.head(self.a(x).relu()).exp()

    return Net(), torch.randn(32, 8), lambda out: out.mean()


def _tied(act, start: str):
    """Decoded with the transpose of the encoder's weight."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.bias = nn.Linear(32, 16), nn.Parameter(torch.zeros(32))
            with torch.no_grad():
                weight = self.encoder.weight
                if start == "equal rows":
                    weight.copy_(weight[:1].clone().expand_as(weight))
                else:
                    weight.fill_(0.1 if start == "constant" else 0.0)
                self.encoder.bias.zero_()

        def forward(self, x):
            return F.linear(act(self.encoder(x)), self.encoder.weight.T, self.bias)

    x = torch.randn(64, 4) @ torch.randn(4, 32)
    return Net(), x, lambda out: F.mse_loss(out, x)


@FAULTS(codes=("S101",), layers=("encoder",), words=("1 distinct of 16",), **ERROR)
def zeros_in_a_tied_autoencoder():
    return _tied(torch.sigmoid, "zero")


@FAULTS(codes=("S101",), layers=("encoder",), words=("1 distinct of 16",), **ERROR)
def constant_in_a_tied_autoencoder():
    return _tied(torch.tanh, "constant")


@FAULTS(codes=("S101",), layers=("encoder",), words=("1 distinct of 16",), **ERROR)
def equal_rows_in_a_tied_autoencoder():
    return _tied(torch.relu, "equal rows")


@FAULTS(codes=("S102",), layers=("encoder",), words=("two zero factors (encoder.weight)",), **ERROR)
def tied_autoencoder_that_never_moves():
    return _tied(torch.tanh, "zero")


@FAULTS(codes=("S102",), layers=("body",), words=("two zero factors (body.weight)",), **ERROR)
def zero_layer_that_runs_twice():
    """The only zero of the model, and both factors."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(16, 16, bias=False), nn.Linear(16, 4)
            nn.init.zeros_(self.body.weight)

        def forward(self, x):
            return self.head(self.body(self.body(x).relu()))

    return Net(), torch.randn(32, 16), classify(32, 4)


@FAULTS(codes=("S102",), layers=("a", "b"), words=("two zero factors (",), **ERROR)
def zeros_inside_vmap():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)
            zero_(self.a, self.b)

        def forward(self, x):
            return torch.vmap(lambda one: self.b(self.a(one).relu()))(x)

    return Net(), torch.randn(32, 8), classify(32, 4)


@FAULTS(codes=("S102",), layers=("0",), words=("nothing that was watched says why",), **ERROR)
def zeros_on_both_sides_of_a_vmap():
    """Where torch.vmap ends, the signal is lost from sight."""
    act = blocks.Lambda(torch.vmap(torch.relu, in_dims=1, out_dims=1))
    model = nn.Sequential(nn.Linear(8, 16), act, nn.Linear(16, 4))
    zero_(model[0], model[2])
    return model, torch.randn(32, 8), classify(32, 4)


@FAULTS(codes=("S102",), layers=("a", "b"), words=("nothing that was watched says why",), **ERROR)
def zeros_in_an_ensemble_under_vmap():
    """What torch.vmap makes of the stacked weights is no longer known as theirs."""
    model, batch, loss = blocks.ensemble()
    nn.init.zeros_(model.a)
    nn.init.zeros_(model.b)
    return model, batch, loss


@FAULTS(codes=("S101",), layers=("words",), words=("words: 1 distinct of 48",), **ERROR)
def constants_before_experts_that_get_nothing():
    """The experts are behind a norm of what is constant: they have no say in what is lost.

    What gradient there is is rounding: a width of whole vectors of 8, 16 and 24 units rounds alike.
    """

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.norm = nn.Embedding(40, 48), nn.LayerNorm(48)
            self.experts = nn.ModuleList(mlp(48, 96, 48) for _ in range(3))
            self.last, self.head = nn.LayerNorm(48), nn.Linear(48, 40, bias=False)
            for parameter in self.parameters():
                if parameter.dim() > 1:
                    nn.init.constant_(parameter, 0.02)
            for expert in self.experts:
                nn.init.zeros_(expert[0].bias)
                nn.init.zeros_(expert[2].bias)

        def forward(self, tokens):
            h = self.words(tokens)
            normed = self.norm(h)
            return self.head(self.last(h + sum(e(normed) for e in self.experts)))

    tokens = torch.randint(0, 40, (8, 12))
    targets = torch.randint(0, 40, (96,))
    return Net(), tokens, lambda out: F.cross_entropy(out.flatten(0, 1), targets)


# ── scales that only training shows ──────────────────────────────────────────────────────────


class Recurrence(nn.Module):
    """Reads twenty steps, at once or one by one, and answers from the last state."""

    def __init__(self, whole: bool):
        super().__init__()
        kind = nn.RNN if whole else nn.RNNCell
        more = {"batch_first": True} if whole else {}
        self.rnn, self.head = kind(2, 32, nonlinearity="relu", **more), nn.Linear(32, 1)

    def forward(self, x):
        if isinstance(self.rnn, nn.RNN):
            return self.head(self.rnn(x)[0][:, -1])
        state = x.new_zeros(len(x), 32)
        for step in x.unbind(1):
            state = self.rnn(step, state)
        return self.head(state)


@FAULTS(codes=("P202",), layers=("rnn",), **ERROR)
def recurrent_weights_of_variance_one():
    """4e10 after twenty steps; the layer is the first place on the trunk and its own base."""
    model = Recurrence(whole=True)
    nn.init.normal_(model.rnn.weight_hh_l0)
    return model, torch.rand(64, 20, 2), regress(64, 1)


@FAULTS(codes=("P202",), layers=("rnn",), **ERROR)
def cell_that_doubles_its_state():
    model = Recurrence(whole=False)
    with torch.no_grad():
        model.rnn.weight_hh.copy_(2 * torch.eye(32))
    return model, torch.rand(64, 20, 2), regress(64, 1)


@FAULTS(codes=("O301",), layers=("4",), words=("guessing zero",), **WARNING)
def regression_with_weights_ten_times_too_large():
    """Three layers make ×60 of the targets: no growth that P202 counts."""
    model = mlp(8, 64, 64, 1)
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.mul_(10)
    return model, torch.randn(256, 8), regress(256, 1)


@FAULTS(codes=("O301",), words=("guessing zero",), **WARNING)
def tables_of_which_rows_are_multiplied():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.users, self.items = nn.Embedding(50, 16), nn.Embedding(40, 16)
            with torch.no_grad():
                self.users.weight.mul_(10)
                self.items.weight.mul_(10)

        def forward(self, pairs):
            return (self.users(pairs[:, 0]) * self.items(pairs[:, 1])).sum(-1)

    pairs, stars = torch.randint(0, 40, (256, 2)), torch.randint(1, 6, (256,)).float()
    return Net(), pairs, lambda out: F.smooth_l1_loss(out, stars)


@FAULTS(codes=("O301",), layers=("5",), words=("inputs are so large",), **WARNING)
def raw_pixels_into_a_relu_network():
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    return model, torch.randint(0, 256, (32, 3, 16, 16)).float(), classify(32, 10)


@FAULTS(codes=("O301",), words=("enlarges its logits",), **WARNING)
def cosines_enlarged_64_times():
    """The head's weights are normalized: no start of theirs makes the logits smaller."""

    class Arc(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = mlp(20, 32, 16), nn.Parameter(torch.randn(10, 16))

        def forward(self, x):
            return F.linear(F.normalize(self.body(x)), F.normalize(self.head))

    labels = torch.randint(0, 10, (64,))
    margin = 0.5 * F.one_hot(labels, 10)

    def arc_face(cosine):
        angle = cosine.clamp(-0.999, 0.999).acos() + margin
        return F.cross_entropy(64 * angle.cos(), labels)

    return Arc(), torch.randn(64, 20), arc_face


@FAULTS(codes=("O301",), words=("exponential",), **WARNING)
def variance_whose_logarithm_is_huge():
    """e^60: the loss is a sum of two, neither of them known."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.mean, self.log = mlp(20, 32, 32), nn.Linear(32, 4), nn.Linear(32, 4)
            nn.init.normal_(self.log.weight, std=20.0)

        def forward(self, x):
            h = self.body(x).tanh()
            mean, log = self.mean(h), self.log(h)
            return (mean.square() + log.exp() - log).mean()

    return Net(), torch.randn(64, 20), lambda out: out


# ── frozen at zero, or next to it ────────────────────────────────────────────────────────────


@FAULTS(codes=("P207",), layers=("words",), words=("frozen at or next to zero",), **ERROR)
def frozen_table_of_zeros_beside_positions():
    """The positions learn, and say the same of all samples."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.places = nn.Embedding(50, 32), nn.Parameter(torch.randn(8, 32))
            self.body, self.head = mlp(32, 64, 32), nn.Linear(32, 2)
            frozen_zero(self.words.weight)

        def forward(self, tokens):
            return self.head(self.body(self.words(tokens) + self.places).mean(1))

    return Net(), torch.randint(0, 50, (32, 8)), classify(32, 2)


@FAULTS(codes=("P207",), layers=("0",), words=("frozen at or next to zero",), **ERROR)
def frozen_first_layer_next_to_zero():
    """Its biases drown the inputs, and its weights cannot grow."""
    model = mlp(20, 32, 32, 5, act=nn.Tanh)
    with torch.no_grad():
        model[0].weight.mul_(1e-6)
    model[0].requires_grad_(False)
    return model, torch.randn(64, 20), classify(64, 5)


class Pointer(nn.Module):
    """Scores of five places, from each place and from the mean of all."""

    def __init__(self):
        super().__init__()
        self.enter, self.out = nn.Linear(2, 16), nn.Linear(16, 1, bias=False)
        self.own, self.whole = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)

    def forward(self, x):
        h = self.enter(x).tanh()
        return self.out((self.own(h) + self.whole(h.mean(1))[:, None]).tanh()).squeeze(-1)


@FAULTS(codes=("P203",), layers=("out",), words=("cancels",), **ERROR)
def scores_that_do_not_see_what_they_score():
    model = Pointer()
    frozen_zero(model.own.weight)
    return model, torch.randn(32, 5, 2), classify(32, 5)


@FAULTS(codes=("P203",), layers=("out",), words=("cancels",), **ERROR)
def scores_that_do_not_see_what_they_score_behind_a_branch_of_zeros():
    """The zero branch trains; what is frozen is to blame."""

    class Net(Pointer):
        def __init__(self):
            super().__init__()
            self.branch = mlp(16, 16, 16)
            zero_(self.branch[2])

        def forward(self, x):
            h = self.enter(x).tanh()
            h = (self.own(h) + self.whole(h.mean(1))[:, None]).tanh()
            return self.out(h + self.branch(h)).squeeze(-1)

    model = Net()
    frozen_zero(model.own.weight)
    return model, torch.randn(32, 5, 2), classify(32, 5)


@FAULTS(codes=("P205",), layers=("2.B", "2.base"), **ERROR)
def adapter_beside_a_bias_that_shuts_its_units():
    """Neither branch is on the trunk; their sum is, and it is dead."""
    model = nn.Sequential(
        blocks.LoRA(nn.Linear(16, 64)),
        nn.GELU(),
        blocks.LoRA(nn.Linear(64, 64)),
        nn.GELU(),
        nn.Linear(64, 2),
    )
    for adapter in (model[0], model[2]):
        nn.init.normal_(adapter.B, std=0.1)
    nn.init.constant_(model[2].base.bias, -10.0).requires_grad_(True)
    return model, torch.randn(64, 16), classify(64, 2)


class _ZeroRows(nn.Module):
    """30 of 32 rows of the layer `wide` are zero; `act` takes the module and what they give."""

    def __init__(self, act):
        super().__init__()
        self.enter, self.wide, self.head = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 4)
        with torch.no_grad():
            self.wide.weight[:30] = self.wide.bias[:30] = 0.0
        self.act = act
        self.register_buffer("scale", torch.tensor(5.6))
        self.register_buffer("scales", torch.linspace(1, 2, 32))
        self.register_buffer("edges", torch.full((32, 32), 1 / 32) + torch.eye(32))

    def forward(self, x):
        return self.head(self.act(self, self.wide(self.enter(x).relu())))


def _zero_rows(act):
    return _ZeroRows(act), torch.randn(32, 16), classify(32, 4)


_THREE = {"codes": ("S101",), "layers": ("wide",), "words": ("wide: 3 distinct of 32",)}


@FAULTS(**_THREE, **ERROR)
def zero_rows_in_front_of_a_relu_written_with_where():
    return _zero_rows(lambda _, h: torch.where(h > 0, h, torch.zeros_like(h)))


@FAULTS(**_THREE, **ERROR)
def zero_rows_that_a_buffer_scales():
    return _zero_rows(lambda net, h: h.relu() * net.scale)


@FAULTS(**_THREE, **ERROR)
def zero_rows_that_a_buffer_without_zeros_scales_one_by_one():
    return _zero_rows(lambda net, h: h.relu() * net.scales)


@FAULTS(**_THREE, **ERROR)
def zero_rows_on_the_nodes_of_a_graph():
    return _zero_rows(lambda net, h: net.edges @ h.relu())


class _Choice(nn.Module):
    """A layer for each of several heads, and a softmax of scores that weighs them."""

    def __init__(self, inputs, outputs, score, heads=1):
        super().__init__()
        self.score, self.heads = score, heads
        self.made = nn.Linear(inputs, heads * outputs)

    def forward(self, x):
        share = self.score(x).softmax(-1).unsqueeze(-1)
        return (share * self.made(x).unflatten(-1, (self.heads, -1))).sum(-2)


_OVER_ONE = {"codes": ("S102",), "words": ("a function without slope (softmax",)}


@FAULTS(layers=("0.score", "2.score"), absent=("S101",), **_OVER_ONE, **WARNING)
def softmax_over_the_one_head_of_a_layer():
    """FeaStConv with heads=1: no start moves the scores, and all else trains."""
    first, second = _Choice(16, 32, nn.Linear(16, 1)), _Choice(32, 3, nn.Linear(32, 1))
    return nn.Sequential(first, nn.ReLU(), second), torch.randn(64, 16), classify(64, 3)


@FAULTS(layers=("0.score.0", "0.score.2"), **_OVER_ONE, **ERROR)
def softmax_over_one_head_that_most_of_the_model_scores():
    return nn.Sequential(_Choice(16, 3, mlp(16, 64, 1))), torch.randn(64, 16), classify(64, 3)


@FAULTS(layers=("value",), **_OVER_ONE, **ERROR)
def softmax_over_the_single_output_of_one_of_two_heads():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.policy, self.value = mlp(16, 64, 64), nn.Linear(64, 3), nn.Linear(64, 1)

        def forward(self, x):
            h = self.body(x).relu()
            return self.policy(h), 5 * self.value(h).softmax(-1)

    act, worth = classify(64, 3), regress(64, 1)
    return Net(), torch.randn(64, 16), lambda out: act(out[0]) + worth(out[1])


@FAULTS(codes=("S102",), layers=("body.0",), words=("(layer_norm in",), **ERROR)
def norm_over_the_one_unit_that_all_learned_layers_read():
    """Most of the entries lie behind it and move, and see nothing of the batch."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(16, 1), nn.LayerNorm(1), *mlp(1, 64, 3))

        def forward(self, x):
            return x[:, :3] + self.body(x)

    return Net(), torch.randn(64, 16), classify(64, 3)


@FAULTS(codes=("S102",), layers=("body.0",), words=("(layer_norm in",), **ERROR)
def norm_over_the_one_unit_in_front_of_most_of_the_model():
    """The way around it learns too, and is a small part."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(16, 1), nn.LayerNorm(1), *mlp(1, 64, 64, 3))
            self.around = nn.Linear(16, 3)

        def forward(self, x):
            return self.around(x) + self.body(x)

    return Net(), torch.randn(64, 16), classify(64, 3)


# ── beside the trunk ─────────────────────────────────────────────────────────────────────────


def _actor_critic(std: float):
    model = blocks.Towers(blocks.deep(20, 4, std), blocks.deep(20, 1, std), lambda a, v: (a, v))
    act, worth = classify(64, 4), regress(64, 1)
    return model, torch.randn(64, 20), lambda out: act(out[0]) + worth(out[1])


@FAULTS(codes=("P201", "P203"), layers=("one.4", "other.4"), **ERROR)
def actor_and_critic_that_vanish():
    """They share no layer: there is no place that every path passes."""
    return _actor_critic(0.01)


@FAULTS(codes=("P202", "O301"), layers=("one.8", "other.8"), **ERROR)
def actor_and_critic_that_explode():
    return _actor_critic(1.0)


@FAULTS(codes=("P203",), layers=("one.0", "other.0"), absent=("P201",), **ERROR)
def two_towers_whose_cosines_are_all_the_same():
    """Biases keep the size of what small weights lose of the samples (CLIP)."""

    def cosines(a, b):
        return 14 * F.normalize(a, dim=1) @ F.normalize(b, dim=1).T

    model = blocks.Towers(blocks.deep(20, 32, 0.01, 0.3), blocks.deep(20, 32, 0.01, 0.3), cosines)
    return model, torch.randn(64, 20), lambda out: F.cross_entropy(out, torch.arange(64))


@FAULTS(codes=("P201", "P203"), layers=("other.4",), **ERROR)
def deep_part_of_a_wide_and_deep_network_that_vanishes():
    model = blocks.Towers(nn.Linear(20, 4), blocks.deep(20, 4, 0.01), torch.add)
    return model, torch.randn(64, 20), classify(64, 4)


@FAULTS(codes=("P201", "P203"), layers=("body.4",), **ERROR)
def body_that_vanishes_beside_the_image_itself():
    """VDSR, DnCNN: what the body gives is added to the input."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            layers = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()]
            for _ in range(14):
                layers += [nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
            self.body = nn.Sequential(*layers, nn.Conv2d(16, 1, 3, padding=1))
            for layer in self.body[::2]:
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)

        def forward(self, x):
            return x + self.body(x)

    clean = torch.rand(4, 1, 12, 12)
    return Net(), clean + 0.1 * torch.randn(4, 1, 12, 12), lambda out: F.mse_loss(out, clean)


@FAULTS(codes=("P201", "P203"), layers=("1.body.4",), **WARNING)
def branch_inside_a_model_that_vanishes_layer_by_layer():
    """What is around it trains."""
    branch = blocks.Scaled(*blocks.deep(16, 16, 0.01), start=1.0)
    model = nn.Sequential(nn.Linear(20, 16), branch, nn.Linear(16, 4))
    return model, torch.randn(64, 20), classify(64, 4)


# ── nothing comes through ────────────────────────────────────────────────────────────────────


def _dead_convolution(between):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3, 2, padding=1), nn.Linear(128, 5)
            nn.init.constant_(self.conv.bias, -30.0)
            nn.init.zeros_(self.head.bias)

        def forward(self, x):
            return self.head(between(self.conv(x)).relu().flatten(1))

    return Net(), torch.randn(32, 3, 8, 8), classify(32, 5)


@FAULTS(codes=("P205", "S102"), layers=("conv",), **ERROR)
def dead_convolution_behind_a_pool():
    return _dead_convolution(lambda h: F.max_pool2d(h, 3, 1, 1))


@FAULTS(codes=("P205", "S102"), layers=("conv",), **ERROR)
def dead_convolution_whose_units_are_flattened_before_they_are_bent():
    return _dead_convolution(lambda h: h.flatten(1))


@FAULTS(codes=("P205", "S102"), layers=("2",), **ERROR)
def dead_output_behind_a_squeeze():
    model = nn.Sequential(*mlp(20, 32, 1), nn.Flatten(0), nn.ReLU())
    nn.init.constant_(model[2].bias, -10.0)
    return model, torch.randn(64, 20), regress(64)


_STILL = {"codes": ("S102",), "words": ("no weight of the model moves",)}


@FAULTS(layers=("gates",), **_STILL, **ERROR)
def hard_concrete_gates_that_are_all_shut():
    """L0 regularization (Louizos 2018): a stretched sigmoid, cut to 0 where its slope ends."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.head = nn.Linear(20, 64), nn.Linear(64, 5)
            self.gates = nn.Parameter(torch.full((64,), -15.0))
            nn.init.zeros_(self.head.bias)

        def forward(self, x):
            gates = (torch.sigmoid(self.gates / 0.66) * 1.2 - 0.1).clamp(0, 1)
            return self.head(self.hidden(x).relu() * gates)

    return Net(), torch.randn(64, 20), classify(64, 5)


def _routed(bias):
    model = Routed(bias)
    nn.init.zeros_(model.head.bias)
    return model, torch.randn(64, 20), classify(64, 5)


@FAULTS(layers=("first",), **_STILL, **ERROR)
def gates_of_every_block_shut():
    """Behind a bias of −1 they have no slope."""
    return _routed(-1.0)


@FAULTS(codes=("P203",), layers=("head",), words=("only biases move",), **ERROR)
def gates_next_to_zero_in_a_row():
    """Each lets a hundredth through of what the one before it has let through."""
    return _routed(0.0)


@FAULTS(layers=("centres",), **_STILL, **ERROR)
def exponentials_of_distances_that_underflow():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.centres, self.head = nn.Parameter(torch.randn(48, 64)), nn.Linear(48, 5)
            nn.init.zeros_(self.head.bias)

        def forward(self, x):
            return self.head(torch.exp(-3.0 * (x[:, None] - self.centres).square().sum(-1)))

    return Net(), torch.randn(64, 64), classify(64, 5)


class _Binarized(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight):
        ctx.save_for_backward(weight)
        return weight.sign()

    @staticmethod
    def backward(ctx, gradient):
        (weight,) = ctx.saved_tensors
        return gradient * (weight.abs() <= 1)


class _Binary(nn.Linear):
    def forward(self, x):
        return F.linear(x, _Binarized.apply(self.weight) / self.in_features**0.5, self.bias)


@FAULTS(layers=("0",), **_STILL, **ERROR)
def binary_weights_beyond_the_range_that_hands_gradients_on():
    """XNOR-Net: the estimator's slope is zero where |w| > 1."""
    model = nn.Sequential(_Binary(20, 64), nn.ReLU(), _Binary(64, 5))
    for layer in model[::2]:
        layer.weight.data = 1.5 * layer.weight.data.sign()
    return model, torch.randn(64, 20), classify(64, 5)


@FAULTS(codes=("N404",), layers=("tokens",), **ERROR)
def table_of_zeros_that_is_divided_by_its_own_norm():
    """Its gradient is 1e35: clipping and Adam square it, and nothing moves."""

    class Normed(nn.Module):
        def __init__(self, body):
            super().__init__()
            self.body, self.scale = body, nn.Parameter(torch.ones(32))

        def forward(self, x):
            return self.body(F.normalize(x, dim=-1) * 32**0.5 * self.scale)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = nn.Embedding(16, 32)
            nn.init.zeros_(self.tokens.weight)
            self.blocks = nn.ModuleList(
                Normed(
                    nn.Sequential(
                        nn.Linear(32, 64, bias=False), nn.GELU(), nn.Linear(64, 32, bias=False)
                    )
                )
                for _ in range(2)
            )
            self.head = Normed(nn.Linear(32, 16))

        def forward(self, x):
            x = self.tokens(x)
            for block in self.blocks:
                x = x + block(x)
            return self.head(x)

    tokens = torch.randint(0, 16, (16, 8))
    return Net(), tokens, lambda out: F.cross_entropy(out.flatten(0, 1), tokens.flatten())


# ── one cause, which is not where the fault shows ────────────────────────────────────────────


class _Conditioned(nn.Module):
    """FiLM whose scales multiply alone, so that zeros of their generator shut the signal out."""

    def __init__(self):
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 4 * 24))
        self.first = nn.Linear(10, 24)
        self.blocks = nn.ModuleList(nn.Linear(24, 24) for _ in range(2))
        self.head = nn.Linear(24, 4)

    def forward(self, x, condition):
        made = self.generator(condition).reshape(len(x), 2, 2, 24)
        h = self.first(x).relu()
        for i, block in enumerate(self.blocks):
            h = (made[:, i, 0] * block(h) + made[:, i, 1]).relu()
        return self.head(h)


@FAULTS(codes=("S102",), layers=("generator.2",), **ERROR)
def film_whose_generator_ends_in_zeros():
    model = _Conditioned()
    zero_(model.generator[2])
    return model, (torch.randn(32, 10), torch.randn(32, 6)), classify(32, 4)


class _Standardized(nn.Linear):
    def forward(self, x):
        weight = self.weight - self.weight.mean(1, keepdim=True)
        weight = weight / (self.weight.std(1, keepdim=True) + 1e-5)
        return F.linear(x, weight / self.in_features**0.5, self.bias)


@FAULTS(codes=("P207",), layers=("2",), **ERROR)
def zeros_that_are_standardized():
    model = nn.Sequential(
        _Standardized(16, 24), nn.ReLU(), _Standardized(24, 24), nn.ReLU(), nn.Linear(24, 4)
    )
    nn.init.zeros_(model[2].weight)
    return model, torch.randn(32, 16), classify(32, 4)


class _OfLengthOne(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight / self.weight.norm(dim=1, keepdim=True), self.bias)


@FAULTS(codes=("N403",), layers=("2",), words=("2.weight", "computed"), **ERROR)
def row_of_zeros_that_is_divided_by_its_length():
    model = nn.Sequential(
        _OfLengthOne(16, 24), nn.ReLU(), _OfLengthOne(24, 24), nn.ReLU(), nn.Linear(24, 4)
    )
    with torch.no_grad():
        model[2].weight[3] = 0.0
    return model, torch.randn(32, 16), classify(32, 4)


class _Quantized(nn.Module):
    """LSQ: weights rounded to a learned step."""

    def __init__(self, n, m, step):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(m, n) * (2 / n) ** 0.5)
        self.bias, self.step = nn.Parameter(torch.zeros(m)), nn.Parameter(torch.tensor(step))

    def forward(self, x):
        weight = (self.weight / self.step).clamp(-8, 7)
        weight = (weight.round() - weight).detach() + weight
        return F.linear(x, weight * self.step, self.bias)


@FAULTS(codes=("P207",), layers=("4",), **ERROR)
def quantizers_whose_step_is_next_to_zero():
    layers = (_Quantized(16, 24, 1e-10), nn.ReLU(), _Quantized(24, 24, 1e-10), nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(24, 4)), torch.randn(32, 16), classify(32, 4)


class _Tempered(nn.Module):
    def __init__(self, temperature):
        super().__init__()
        self.body, self.temperature = mlp(16, 24, 4), nn.Parameter(torch.tensor(temperature))

    def forward(self, x):
        return self.body(x) / self.temperature


@FAULTS(codes=("N403",), layers=("temperature",), **ERROR)
def temperature_of_zero():
    return _Tempered(0.0), torch.randn(32, 16), classify(32, 4)


@FAULTS(codes=("P202",), layers=("temperature",), **ERROR)
def temperature_next_to_zero():
    return _Tempered(1e-8), torch.randn(32, 16), classify(32, 4)


@FAULTS(codes=("P207",), layers=("4",), **ERROR)
def norms_drawn_like_weights():
    """A loop over all parameters of an encoder: `normal_(std=0.02)`."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(2))
            self.mix, self.up, self.down = nn.Linear(16, 16), nn.Linear(16, 32), nn.Linear(32, 16)

        def forward(self, x):
            x = self.norms[0](x + self.mix(x))
            return self.norms[1](x + self.down(F.gelu(self.up(x))))

    model = nn.Sequential(nn.Linear(8, 16), *(Block() for _ in range(6)), nn.Linear(16, 4))
    for parameter in model.parameters():
        if parameter.dim() > 1 or parameter.unique().tolist() == [1.0]:
            nn.init.normal_(parameter, std=0.02)
    return model, torch.randn(32, 8), classify(32, 4)


class _Mixture(nn.Module):
    """A mixture density network: shares, means and widths."""

    def __init__(self):
        super().__init__()
        self.body = mlp(8, 24, 24, act=nn.Tanh)
        self.shares, self.means, self.widths = (nn.Linear(24, 5) for _ in range(3))

    def forward(self, x):
        h = self.body(x).tanh()
        return self.shares(h).softmax(-1), self.means(h), self.widths(h).exp()


@FAULTS(codes=("N403",), words=("loss",), **ERROR)
def mixture_whose_widths_underflow():
    """Each output is finite; the density at a width of e^-100 is not."""
    model, target = _Mixture(), torch.randn(32, 1)
    nn.init.constant_(model.widths.bias, -100.0)

    def loss(out):
        shares, means, widths = out
        density = torch.exp(-0.5 * ((target - means) / widths) ** 2) / (2.5066 * widths)
        return -(shares * density).sum(1).log().mean()

    return model, torch.randn(32, 8), loss


class _Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, weight):
        return weight * self.factor


@FAULTS(codes=("P202",), layers=("10",), **ERROR)
def weights_of_one_times_a_parametrized_constant():
    model = mlp(16, *[32] * 5, 4, act=nn.LeakyReLU)
    for layer in model[::2]:
        nn.init.normal_(layer.weight)
        nn.init.zeros_(layer.bias)
        nn.utils.parametrize.register_parametrization(layer, "weight", _Times(3.0))
    return model, torch.randn(32, 16), classify(32, 4)


@FAULTS(codes=("P202",), layers=("10.weight",), **ERROR)
def products_enlarged_before_a_bias_of_zero():
    class Enlarged(nn.Linear):
        def forward(self, x):
            return 2.0 * F.linear(x, self.weight) + self.bias

    layers = [Enlarged(16, 32), *(Enlarged(32, 32) for _ in range(4)), Enlarged(32, 4)]
    for layer in layers:
        nn.init.normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    stack = [part for layer in layers for part in (layer, nn.LeakyReLU(0.2))][:-1]
    return nn.Sequential(*stack), torch.randn(32, 16), classify(32, 4)


# ── beside the weights ───────────────────────────────────────────────────────────────────────


def _normed(**options):
    parts = [(nn.BatchNorm1d(24, **options), nn.ReLU(), nn.Linear(24, 24)) for _ in range(4)]
    layers = [part for block in parts for part in block]
    return nn.Sequential(nn.Linear(16, 24), *layers[:-1], nn.Linear(24, 4))


@FAULTS(codes=("P207",), layers=("12",), **ERROR)
def norms_with_an_eps_of_a_thousand():
    return _normed(eps=1e3), torch.randn(32, 16), classify(32, 4)


@FAULTS(codes=("P207",), layers=("3",), **ERROR)
def running_variance_that_nobody_wrote():
    model = _normed()
    model[1].running_var.fill_(1e30)
    return model.eval(), torch.randn(32, 16), classify(32, 4)


class _Masked(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.a, self.b, self.head = mlp(16, 24, 24), nn.Linear(24, 24), nn.Linear(24, 4)
        self.register_buffer("mask", torch.full((24,), value))

    def forward(self, x):
        return self.head(self.b((self.a(x) * self.mask).relu()).relu())


@FAULTS(codes=("P202",), layers=("b",), **ERROR)
def mask_that_nobody_wrote():
    return _Masked(1e30), torch.randn(32, 16), classify(32, 4)


@FAULTS(codes=("N403",), layers=("2",), **ERROR)
def spectral_norm_over_zeros():
    """Its power iteration starts from vectors of zeros, and stays there."""
    model = mlp(16, 24, 24, 4)
    nn.init.zeros_(model[2].weight)
    nn.utils.parametrizations.spectral_norm(model[2])
    return model, torch.randn(32, 16), classify(32, 4)


@FAULTS(codes=("S102",), **ERROR)
def factor_of_zero_that_is_no_parameter():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.factor = mlp(16, 24, 24), mlp(24, 24, 4), 0.0

        def forward(self, x):
            return self.b((self.factor * self.a(x)).relu())

    return Net(), torch.randn(32, 16), classify(32, 4)


@FAULTS(codes=("S104",), layers=("0.weight", "2.weight"), words=("same memory",), **WARNING)
def two_parameters_in_one_memory():
    model = mlp(16, 16, 16, 4)
    model[2].weight = nn.Parameter(model[0].weight.data)
    return model, torch.randn(32, 16), classify(32, 4)


@FAULTS(codes=("S101",), layers=("rnn.weight_ih_l0",), **ERROR)
def constant_gru_whose_sequences_are_packed():
    """The lengths decide the size of its first state, and nothing of its values."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(8, 16, 2, bidirectional=True, batch_first=True)
            self.head = nn.Linear(32, 6)
            for parameter in self.rnn.parameters():
                nn.init.constant_(parameter, 0.05)

        def forward(self, x, lengths):
            packed = nn.utils.rnn.pack_padded_sequence(
                x, lengths, batch_first=True, enforce_sorted=False
            )
            made, _ = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
            return self.head(made.mean(1))

    lengths = torch.tensor([9, 3, 7, 9] * 4)
    return Net(), (torch.randn(16, 9, 8), lengths), classify(16, 6)


class _Energy(nn.Module):
    """The forward differentiates: what every layer of the energy makes is on the only way."""

    def __init__(self, act):
        super().__init__()
        self.energy = mlp(6, 32, 32, 1, act=act)
        self.energy[4].bias = None  # no derivative depends on it

    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            return torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0]


@FAULTS(codes=("P205",), layers=("energy.2",), **ERROR)
def dead_layer_of_an_energy():
    model = _Energy(nn.Softplus)
    nn.init.constant_(model.energy[2].bias, -30.0)
    return model, torch.randn(24, 6), regress(24, 6)


@FAULTS(codes=("P206",), layers=("energy.2",), **ERROR)
def saturated_layer_of_an_energy():
    model = _Energy(nn.Tanh)
    nn.init.normal_(model.energy[2].weight, std=20.0)
    return model, torch.randn(24, 6), regress(24, 6)


class _Pair(nn.Module):
    """Two encoders, of two tensors, that meet in one product."""

    def __init__(self):
        super().__init__()
        self.image = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Flatten(), *mlp(784, 48, 24)
        )
        self.table = nn.Embedding(50, 32)
        self.text = mlp(32, 48, 24)

    def forward(self, image, tokens):
        read = F.normalize(self.text(self.table(tokens).mean(1)), dim=-1)
        return 10 * F.normalize(self.image(image), dim=-1) @ read.T


def _constant_(*layers: nn.Linear) -> None:
    for layer in layers:
        nn.init.constant_(layer.weight, 0.05)
        nn.init.zeros_(layer.bias)


@FAULTS(codes=("S101",), layers=("image.3",), **ERROR)
def one_of_two_encoders_has_collapsed():
    """What comes in by one tensor has to pass it, although the other goes around."""
    model = _Pair()
    _constant_(model.image[3], model.image[5])
    batch = (torch.randn(16, 3, 16, 16), torch.randint(0, 50, (16, 5)))
    return model, batch, lambda out: F.cross_entropy(out, torch.arange(16))


class _Adversaries(nn.Module):
    """A generator in front of a discriminator, which is given real samples as well."""

    def __init__(self):
        super().__init__()
        self.generator = nn.Sequential(*mlp(16, 48, 48, 24), nn.Tanh())
        self.discriminator = mlp(24, 48, 48, 1, act=nn.LeakyReLU)

    def forward(self, noise, real):
        return self.discriminator(self.generator(noise)), self.discriminator(real)

    @staticmethod
    def loss(out):
        return F.softplus(out[0]).mean() + F.softplus(-out[1]).mean()

    @staticmethod
    def batch():
        return torch.randn(32, 16), torch.randn(32, 24).tanh()


@FAULTS(codes=("S101",), layers=("generator.2",), **ERROR)
def collapsed_generator():
    model = _Adversaries()
    _constant_(model.generator[2], model.generator[4])
    return model, model.batch(), model.loss


@FAULTS(codes=("P205",), layers=("generator.2",), **ERROR)
def dead_generator():
    model = _Adversaries()
    nn.init.constant_(model.generator[2].bias, -30.0)
    return model, model.batch(), model.loss


@FAULTS(codes=("P206",), layers=("generator.4",), **ERROR)
def saturated_generator():
    model = _Adversaries()
    nn.init.constant_(model.generator[4].bias, 20.0)
    return model, model.batch(), model.loss


@FAULTS(codes=("S101",), layers=("time.0",), **WARNING)
def collapsed_embedding_of_a_time():
    """A small part beside the network: without it, most of what there is to learn is learned."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.time, self.read, self.body = mlp(8, 16, 32), nn.Linear(12, 32), mlp(32, 96, 12)
            _constant_(self.time[0], self.time[2])

        def forward(self, x, time):
            return self.body(self.read(x) + self.time(time))

    return Net(), (torch.randn(32, 12), torch.randn(32, 8)), regress(32, 12)


@FAULTS(codes=("S101",), layers=("first.2",), **WARNING)
def one_of_two_critics_has_collapsed():
    """Both are given the same, so that the other learns what there is to learn."""

    class Critics(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = mlp(12, 32, 32, 1), mlp(12, 32, 32, 1)
            _constant_(self.first[2], self.first[4])

        def forward(self, state, action):
            x = torch.cat([state, action], 1)
            return self.first(x) + self.second(x)

    return Critics(), (torch.randn(24, 8), torch.randn(24, 4)), regress(24, 1)


class _NormedGates(nn.Module):
    """A recurrent cell by hand, whose gates are normalized."""

    def __init__(self):
        super().__init__()
        self.made, self.norm, self.head = nn.Linear(24, 48), nn.LayerNorm(48), nn.Linear(16, 3)

    def forward(self, x):
        state = x.new_zeros(len(x), 16)
        for step in x.unbind(1):
            reset, update, new = self.norm(self.made(torch.cat([step, state], 1))).chunk(3, 1)
            update = update.sigmoid()
            state = update * (reset.sigmoid() * new).tanh() + (1 - update) * state
        return self.head(state)


@FAULTS(codes=("P206",), layers=("made", "norm"), words=("shifts of the norm",), **EITHER)
def gates_shut_by_the_shift_of_a_norm():
    model = _NormedGates()
    nn.init.constant_(model.norm.bias[16:32], -20.0)
    return model, torch.randn(24, 6, 8), classify(24, 3)


# ── last layers that their biases hold ───────────────────────────────────────────────────────


@FAULTS(codes=("P206",), layers=("2",), **ERROR)
def bias_that_holds_a_bounded_head():
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3), nn.Tanh())
    nn.init.constant_(model[2].bias, -8.0)
    batch = torch.randn(64, 8)
    return model, batch, lambda out: (out - torch.tanh(batch[:, :3])).square().mean()


@FAULTS(codes=("P206",), layers=("colour",), **ERROR)
def colours_that_their_biases_hold():
    """NeRF: what they are multiplied with is a way around them."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.density = nn.Linear(8, 32), nn.Linear(32, 1)
            self.colour = nn.Linear(32, 3)
            nn.init.constant_(self.colour.bias, 12.0)

        def forward(self, x):
            x = torch.relu(self.body(x))
            return torch.sigmoid(self.colour(x)) * (1 - torch.exp(-F.softplus(self.density(x))))

    return Net(), torch.randn(64, 8), regress(64, 3)


@FAULTS(codes=("P207",), layers=("0", "2", "4"), **WARNING)
def zeros_in_a_row_beside_biases():
    """Biases tell the units apart, and the inputs reach none of them."""
    model = mlp(8, 32, 32, 4)
    for layer in (model[0], model[2], model[4]):
        nn.init.zeros_(layer.weight)
    return model, torch.randn(64, 8), classify(64, 4)
