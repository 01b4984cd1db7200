"""Healthy models: each at the start its authors or its library give it, known to train."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from zoo import Zoo, blocks
from zoo.blocks import classify, mlp, next_token, regress

__all__ = ["HEALTHY"]

HEALTHY = Zoo(ok=True)


# ── plain stacks at PyTorch's defaults ───────────────────────────────────────────────────────


def plain(act, depth: int, samples: int = 32):
    def build():
        return (
            mlp(20, *[64] * (depth - 1), 5, act=act),
            torch.randn(samples, 20),
            classify(samples, 5),
        )

    return build


for _act in (nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.LeakyReLU, nn.ELU, nn.PReLU):
    for _depth in (2, 4, 8):
        HEALTHY.add(f"mlp-{_act.__name__.lower()}-{_depth}", plain(_act, _depth))
HEALTHY.add("mlp-sigmoid-2", plain(nn.Sigmoid, 2))
HEALTHY.add("mlp-sigmoid-3", plain(nn.Sigmoid, 3))
HEALTHY.add("mlp-softplus-3", plain(nn.Softplus, 3))
HEALTHY.add("mlp-hardswish-3", plain(nn.Hardswish, 3))
HEALTHY.add("mlp-relu-4-batch-of-one", plain(nn.ReLU, 4, samples=1))
HEALTHY.add("mlp-tanh-4-batch-of-one", plain(nn.Tanh, 4, samples=1))
HEALTHY.add("linear-regression", lambda: (nn.Linear(7, 1), torch.randn(32, 7), regress(32, 1)))
HEALTHY.add("linear-classifier", lambda: (nn.Linear(7, 5), torch.randn(32, 7), classify(32, 5)))
HEALTHY.add("mlp-without-loss", lambda: (mlp(20, 64, 64, 5), torch.randn(32, 20)))
HEALTHY.add("mlp-wide", lambda: (mlp(50, 1024, 1024, 10), torch.randn(16, 50), classify(16, 10)))
HEALTHY.add("mlp-narrow", lambda: (mlp(9, 3, 3, 3), torch.randn(40, 9), classify(40, 3)))
HEALTHY.add("mlp-float64", lambda: (mlp(9, 30, 3).double(), torch.randn(40, 9).double()))
HEALTHY.add("mlp-bfloat16", lambda: (mlp(9, 30, 3).bfloat16(), torch.randn(40, 9).bfloat16()))
HEALTHY.add(
    "mlp-he-relu-12",
    lambda: (blocks.he_(mlp(20, *[128] * 11, 5)), torch.randn(64, 20), classify(64, 5)),
)


@HEALTHY()
def logistic_regression_at_zero():
    model = nn.Linear(12, 1)
    blocks.zero_(model)
    labels = torch.randint(0, 2, (40, 1)).float()
    return model, torch.randn(40, 12), lambda out: F.binary_cross_entropy_with_logits(out, labels)


@HEALTHY()
def mlp_batch_norm():
    layers = []
    for n, m in ((20, 64), (64, 64), (64, 64), (64, 64)):
        layers += [nn.Linear(n, m), nn.BatchNorm1d(m), nn.ReLU(inplace=True), nn.Dropout(0.1)]
    return nn.Sequential(*layers, nn.Linear(64, 5)), torch.randn(32, 20), classify(32, 5)


@HEALTHY()
def mlp_functional_normalised():
    """Functional activations, in-place ones, and a norm without parameters."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(20, 40), nn.Linear(40, 40), nn.Linear(40, 5)

        def forward(self, x):
            x = F.layer_norm(F.relu_(self.a(x)), (40,))
            x = torch.sigmoid(self.b(x)).mul(2).sub_(1)
            return self.c(x).clamp(-30, 30)

    return Net(), torch.randn(32, 20), classify(32, 5)


@HEALTHY()
def matmul_in_out():
    """``x @ W`` with W [in, out], He by its true fan."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w1 = nn.Parameter(torch.randn(20, 80) * math.sqrt(2 / 20))
            self.b1 = nn.Parameter(torch.zeros(80))
            self.w2 = nn.Parameter(torch.randn(80, 40) * math.sqrt(2 / 80))
            self.b2 = nn.Parameter(torch.zeros(40))
            self.w3 = nn.Parameter(torch.randn(40, 5) * math.sqrt(1 / 40))

        def forward(self, x):
            x = torch.relu(x @ self.w1 + self.b1)
            x = torch.addmm(self.b2, x, self.w2).relu()
            return torch.matmul(x, self.w3)

    return Net(), torch.randn(32, 20), classify(32, 5)


@HEALTHY()
def bilinear():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(9, 12), nn.Linear(7, 11)
            self.join, self.head = nn.Bilinear(12, 11, 16), nn.Linear(16, 3)

        def forward(self, a, b):
            return self.head(self.join(self.left(a).tanh(), self.right(b).tanh()).relu())

    return Net(), (torch.randn(24, 9), torch.randn(24, 7)), classify(24, 3)


@HEALTHY()
def siren():
    """sin(30 W x), W by SIREN's own rule."""

    class Net(nn.Module):
        def __init__(self, width=64, depth=4, omega=30.0):
            super().__init__()
            self.omega = omega
            self.layers = nn.ModuleList(nn.Linear(n, width) for n in (2, *[width] * depth))
            self.head = nn.Linear(width, 3)
            with torch.no_grad():
                for number, layer in enumerate(self.layers):
                    bound = 1 / 2 if number == 0 else math.sqrt(6 / width) / omega
                    layer.weight.uniform_(-bound, bound)
                self.head.weight.uniform_(
                    -math.sqrt(6 / width) / omega, math.sqrt(6 / width) / omega
                )

        def forward(self, x):
            for layer in self.layers:
                x = torch.sin(self.omega * layer(x))
            return self.head(x)

    return Net(), torch.rand(128, 2) * 2 - 1, regress(128, 3)


@HEALTHY()
def nerf():
    """Positional encoding, a skip into the middle, density and colour heads."""

    class Net(nn.Module):
        def __init__(self, width=64):
            super().__init__()
            self.trunk1, self.trunk2 = mlp(39, width, width, width), mlp(width + 39, width, width)
            self.density, self.colour = nn.Linear(width, 1), mlp(width + 3, width // 2, 3)

        def forward(self, points, views):
            waves = [f(2.0**k * points) for k in range(6) for f in (torch.sin, torch.cos)]
            code = torch.cat([points, *waves], -1)
            h = self.trunk2(torch.cat([self.trunk1(code).relu(), code], -1)).relu()
            colour = self.colour(torch.cat([h, views], -1)).sigmoid()
            return colour, F.softplus(self.density(h))

    colours = torch.rand(96, 3)
    batch = (torch.rand(96, 3) * 2 - 1, F.normalize(torch.randn(96, 3), dim=-1))
    return Net(), batch, lambda out: F.mse_loss(out[0] * (1 - torch.exp(-out[1])), colours)


@HEALTHY()
def hypernetwork():
    """One network writes the weights of another."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.code = nn.Parameter(torch.randn(2, 8))
            self.writer = mlp(8, 32, 10 * 16)
            self.scale = 0.5
            self.head = nn.Linear(16, 4)

        def forward(self, x):
            for code in self.code:
                w = self.writer(code).view(16, 10) * self.scale
                x = torch.tanh(x[:, :10] @ w.t())
            return self.head(x)

    return Net(), torch.randn(24, 10), classify(24, 4)


@HEALTHY()
def deep_sets():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.phi, self.rho = mlp(5, 32, 32), mlp(32, 32, 3)

        def forward(self, x):
            return self.rho(self.phi(x).mean(1))

    return Net(), torch.randn(24, 11, 5), classify(24, 3)


@HEALTHY()
def graph_network():
    """A dense adjacency, symmetrically normalised, two graph convolutions."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w1, self.w2 = nn.Linear(12, 32, bias=False), nn.Linear(32, 32, bias=False)
            self.b1, self.head = nn.Parameter(torch.zeros(32)), nn.Linear(32, 4)

        def forward(self, x, adjacency):
            adjacency = adjacency + torch.eye(len(adjacency), dtype=adjacency.dtype)
            inverse = adjacency.sum(1).rsqrt()
            a = inverse[:, None] * adjacency * inverse
            x = (a @ self.w1(x) + self.b1).relu()
            return self.head((a @ self.w2(x)).relu())

    edges = torch.rand(30, 30).triu(1) > 0.85
    return Net(), (torch.randn(30, 12), (edges | edges.t()).float()), classify(30, 4)


@HEALTHY()
def dueling_dqn():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
            self.value, self.advantage = mlp(64, 32, 1), mlp(64, 32, 4)

        def forward(self, x):
            h = self.trunk(x)
            a = self.advantage(h)
            return self.value(h) + a - a.mean(1, keepdim=True)

    actions, target = torch.randint(0, 4, (64, 1)), torch.randn(64, 1)
    return Net(), torch.randn(64, 8), lambda q: F.smooth_l1_loss(q.gather(1, actions), target)


@HEALTHY()
def actor_critic():
    """PPO's usual start: orthogonal √2, policy head 0.01, value head 1."""

    def layer(n, m, gain):
        linear = nn.Linear(n, m)
        nn.init.orthogonal_(linear.weight, gain)
        nn.init.zeros_(linear.bias)
        return linear

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.actor = nn.Sequential(
                layer(8, 64, 2**0.5),
                nn.Tanh(),
                layer(64, 64, 2**0.5),
                nn.Tanh(),
                layer(64, 4, 0.01),
            )
            self.critic = nn.Sequential(
                layer(8, 64, 2**0.5), nn.Tanh(), layer(64, 64, 2**0.5), nn.Tanh(), layer(64, 1, 1.0)
            )

        def forward(self, x):
            return self.actor(x), self.critic(x)

    actions, advantage = torch.randint(0, 4, (64,)), torch.randn(64)
    returns = torch.randn(64, 1)

    def loss(out):
        log = F.log_softmax(out[0], -1).gather(1, actions[:, None]).squeeze(1)
        entropy = -(out[0].softmax(-1) * out[0].log_softmax(-1)).sum(-1).mean()
        return -(log * advantage).mean() + 0.5 * F.mse_loss(out[1], returns) - 0.01 * entropy

    return Net(), torch.randn(64, 8), loss


@HEALTHY()
def siamese():
    """One encoder for both sides of a pair, triplet of calls."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = mlp(14, 48, 48, 16)

        def forward(self, a, b, c):
            return tuple(F.normalize(self.encoder(x), dim=-1) for x in (a, b, c))

    batch = tuple(torch.randn(20, 14) for _ in range(3))
    return Net(), batch, lambda out: F.triplet_margin_loss(*out, margin=0.5)


@HEALTHY()
def shared_block():
    """The same module four times in a row, and a parameter reached by two paths."""
    cell = nn.Sequential(nn.Linear(24, 24), nn.LayerNorm(24), nn.GELU())
    model = nn.Sequential(nn.Linear(10, 24), cell, cell, cell, cell, nn.Linear(24, 3))
    return model, torch.randn(32, 10), classify(32, 3)


@HEALTHY()
def contrastive_two_towers():
    """CLIP's shape: two encoders and a learned temperature of no dimension."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = mlp(18, 48, 24), mlp(11, 48, 24)
            self.temperature = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

        def forward(self, a, b):
            a, b = F.normalize(self.left(a), dim=-1), F.normalize(self.right(b), dim=-1)
            return self.temperature.exp() * a @ b.t()

    labels = torch.arange(16)
    batch = (torch.randn(16, 18), torch.randn(16, 11))
    return (
        Net(),
        batch,
        lambda out: (F.cross_entropy(out, labels) + F.cross_entropy(out.t(), labels)) / 2,
    )


# ── images ───────────────────────────────────────────────────────────────────────────────────


def convolutional(act, depth: int = 3, samples: int = 8):
    def build():
        layers, n = [], 3
        for number in range(depth):
            m = 16 * 2 ** min(number, 2)
            layers += [nn.Conv2d(n, m, 3, stride=2 if number < 3 else 1, padding=1), act()]
            n = m
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n, 10))
        return model, torch.randn(samples, 3, 24, 24), classify(samples, 10)

    return build


for _act in (nn.ReLU, nn.Tanh, nn.GELU):
    HEALTHY.add(f"cnn-{_act.__name__.lower()}", convolutional(_act))
HEALTHY.add("cnn-relu-6", convolutional(nn.ReLU, 6))
HEALTHY.add("cnn-relu-batch-of-one", convolutional(nn.ReLU, samples=1))


@HEALTHY()
def lenet():
    model = nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(256, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(),
        nn.Linear(84, 10),
    )  # fmt: skip
    return model, torch.rand(8, 1, 28, 28), classify(8, 10)


@HEALTHY()
def vgg():
    layers, n = [], 3
    for m in (16, 16, 0, 32, 32, 0, 64, 64, 0):
        layers += [nn.Conv2d(n, m, 3, padding=1), nn.ReLU(True)] if m else [nn.MaxPool2d(2)]
        n = m or n
    model = nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Linear(64 * 16, 128),
        nn.ReLU(True),
        nn.Dropout(),
        nn.Linear(128, 10),
    )
    blocks.he_(model)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
    return model, torch.randn(8, 3, 32, 32), classify(8, 10)


def resnet(block, depths, widths, zero_norm=False, samples=4, size=16, eval_mode=False):
    def build():
        model = blocks.ResNet(block, depths, widths, stem=widths[0], zero_norm=zero_norm)
        return (
            model.train(not eval_mode),
            torch.randn(samples, 3, size, size),
            classify(samples, 10),
        )

    return build


HEALTHY.add("resnet-basic", resnet(blocks.BasicBlock, (2, 2, 2), (8, 16, 32)))
HEALTHY.add("resnet-basic-zero-norm", resnet(blocks.BasicBlock, (2, 2, 2), (8, 16, 32), True))
HEALTHY.add("resnet-bottleneck", resnet(blocks.Bottleneck, (2, 2, 2), (16, 32, 64)))
HEALTHY.add("resnet-bottleneck-zero-norm", resnet(blocks.Bottleneck, (2, 2, 2), (16, 32, 64), True))
HEALTHY.add("resnet-basic-eval", resnet(blocks.BasicBlock, (2, 2, 2), (8, 16, 32), eval_mode=True))
HEALTHY.add(
    "resnet-basic-eval-batch-of-one",
    resnet(blocks.BasicBlock, (2, 2, 2), (8, 16, 32), samples=1, eval_mode=True),
)
HEALTHY.add(
    "resnet-zero-norm-eval", resnet(blocks.BasicBlock, (2, 2, 2), (8, 16, 32), True, eval_mode=True)
)
HEALTHY.add(
    "resnet-50-shaped", resnet(blocks.Bottleneck, (3, 4, 6, 3), (64, 128, 256, 512), size=24)
)


@HEALTHY()
def resnet_preactivation():
    class PreBlock(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.bn1, self.conv1 = nn.BatchNorm2d(n), nn.Conv2d(n, n, 3, padding=1, bias=False)
            self.bn2, self.conv2 = nn.BatchNorm2d(n), nn.Conv2d(n, n, 3, padding=1, bias=False)

        def forward(self, x):
            return x + self.conv2(self.bn2(self.conv1(self.bn1(x).relu())).relu())

    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), *(PreBlock(12) for _ in range(4)), nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10),
    )  # fmt: skip
    return model, torch.randn(8, 3, 12, 12), classify(8, 10)


@HEALTHY()
def resnet_group_norm_standardised():
    """Weight-standardised convolutions: the weight is computed from the parameter in forward."""

    class StandardConv(nn.Conv2d):
        def forward(self, x):
            w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            w = w / (w.std((1, 2, 3), keepdim=True) + 1e-5)
            return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def block(n):
        return blocks.Residual(
            nn.GroupNorm(4, n), nn.ReLU(), StandardConv(n, n, 3, padding=1),
            nn.GroupNorm(4, n), nn.ReLU(), StandardConv(n, n, 3, padding=1),
        )  # fmt: skip

    model = nn.Sequential(
        StandardConv(3, 16, 3, padding=1), block(16), block(16), nn.GroupNorm(4, 16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    return model, torch.randn(8, 3, 12, 12), classify(8, 10)


@HEALTHY()
def unet():
    labels = torch.randint(0, 2, (4, 16, 16))
    return blocks.UNet(), torch.randn(4, 3, 16, 16), lambda out: F.cross_entropy(out, labels)


@HEALTHY()
def unet_eval():
    model, batch, loss = unet()
    return model.eval(), batch, loss


@HEALTHY()
def autoencoder():
    model = mlp(40, 32, 16, 4, 16, 32, 40)
    batch = torch.randn(64, 40)
    return model, batch, lambda out: F.mse_loss(out, batch)


@HEALTHY()
def autoencoder_convolutional():
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(),
        nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 1, 4, 2, 1),
        nn.Sigmoid(),
    )  # fmt: skip
    batch = torch.rand(8, 1, 16, 16)
    return model, batch, lambda out: F.binary_cross_entropy(out, batch)


@HEALTHY()
def autoencoder_tied_transposed():
    """The decoder is the encoder's weight, transposed."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.bias = nn.Linear(30, 12), nn.Parameter(torch.zeros(30))

        def forward(self, x):
            return F.linear(self.encoder(x).tanh(), self.encoder.weight.t(), self.bias)

    batch = torch.randn(48, 30)
    return Net(), batch, lambda out: F.mse_loss(out, batch)


@HEALTHY()
def vae():
    """Draws noise in its forward."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.mean, self.spread = (
                mlp(40, 64, 32),
                nn.Linear(32, 6),
                nn.Linear(32, 6),
            )
            self.decoder = mlp(6, 32, 64, 40)

        def forward(self, x):
            h = self.encoder(x).relu()
            mean, spread = self.mean(h), self.spread(h)
            code = mean + torch.randn_like(mean) * (spread / 2).exp()
            return self.decoder(code), mean, spread

    batch = torch.rand(32, 40).round()

    def loss(out):
        image, mean, spread = out
        divergence = -0.5 * (1 + spread - mean**2 - spread.exp()).sum(-1).mean()
        return (
            F.binary_cross_entropy_with_logits(image, batch, reduction="sum") / len(batch)
            + divergence
        )

    return Net(), batch, loss


def dcgan_start(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def generator(width: int = 16) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(20, width * 2, 4, 1, 0, bias=False), nn.BatchNorm2d(width * 2),
        nn.ReLU(True),
        nn.ConvTranspose2d(width * 2, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width),
        nn.ReLU(True),
        nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False), nn.Tanh(),
    ).apply(dcgan_start)  # fmt: skip


def discriminator(width: int = 16) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(width, width * 2, 4, 2, 1, bias=False), nn.BatchNorm2d(width * 2),
        nn.LeakyReLU(0.2, inplace=True), nn.Conv2d(width * 2, 1, 4, 1, 0, bias=False),
        nn.Flatten(0),
    ).apply(dcgan_start)  # fmt: skip


@HEALTHY()
def gan_pair():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.generator, self.discriminator = generator(), discriminator()

        def forward(self, noise, real):
            fake = self.generator(noise)
            return (
                self.discriminator(fake),
                self.discriminator(fake.detach()),
                self.discriminator(real),
            )

    def loss(out):
        return sum(
            F.binary_cross_entropy_with_logits(score, torch.full_like(score, goal))
            for score, goal in zip(out, (1.0, 0.0, 1.0), strict=True)
        )

    return Pair(), (torch.randn(8, 20, 1, 1), torch.rand(8, 3, 16, 16) * 2 - 1), loss


@HEALTHY()
def gan_generator():
    return generator(), torch.randn(8, 20, 1, 1)


@HEALTHY()
def gan_discriminator():
    goal = torch.randint(0, 2, (8,)).float()
    batch = torch.rand(8, 3, 16, 16) * 2 - 1
    return discriminator(), batch, lambda out: F.binary_cross_entropy_with_logits(out, goal)


@HEALTHY()
def mobilenet():
    def block(n, m, stride):
        return nn.Sequential(
            nn.Conv2d(n, n, 3, stride, 1, groups=n, bias=False), nn.BatchNorm2d(n), nn.ReLU6(True),
            nn.Conv2d(n, m, 1, bias=False), nn.BatchNorm2d(m), nn.ReLU6(True),
        )  # fmt: skip

    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(True),
        block(8, 16, 1), block(16, 32, 2), block(32, 32, 1), block(32, 64, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 10),
    )  # fmt: skip
    return model, torch.randn(8, 3, 32, 32), classify(8, 10)


@HEALTHY()
def efficientnet_like():
    """Inverted bottlenecks with squeeze-and-excitation gates."""

    class Gate(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.reduce, self.expand = nn.Conv2d(n, n // 4, 1), nn.Conv2d(n // 4, n, 1)

        def forward(self, x):
            return x * self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()

    def block(n):
        return blocks.Residual(
            nn.Conv2d(n, 4 * n, 1, bias=False), nn.BatchNorm2d(4 * n), nn.SiLU(True),
            nn.Conv2d(4 * n, 4 * n, 5, padding=2, groups=4 * n, bias=False), nn.BatchNorm2d(4 * n),
            nn.SiLU(True), Gate(4 * n), nn.Conv2d(4 * n, n, 1, bias=False), nn.BatchNorm2d(n),
        )  # fmt: skip

    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU(True), block(8), block(8),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] ** 2 * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    return model, torch.randn(8, 3, 16, 16), classify(8, 10)


@HEALTHY()
def convnext_like():
    """LayerScale 1e-6: every block is almost the identity."""

    class ConvNeXtBlock(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.mix = nn.Conv2d(n, n, 7, padding=3, groups=n)
            self.norm = nn.LayerNorm(n, eps=1e-6)
            self.up, self.down = nn.Linear(n, 4 * n), nn.Linear(4 * n, n)
            self.gamma = nn.Parameter(1e-6 * torch.ones(n))

        def forward(self, x):
            h = self.norm(self.mix(x).permute(0, 2, 3, 1))
            return x + (self.gamma * self.down(F.gelu(self.up(h)))).permute(0, 3, 1, 2)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 16, 4, 4)
            self.blocks = nn.Sequential(*(ConvNeXtBlock(16) for _ in range(4)))
            self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 10)
            for module in self.modules():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
                    nn.init.zeros_(module.bias)

        def forward(self, x):
            return self.head(self.norm(self.blocks(self.stem(x)).mean((2, 3))))

    return Net(), torch.randn(8, 3, 32, 32), classify(8, 10)


@HEALTHY()
def densenet_like():
    class Dense(nn.Module):
        def __init__(self, n, growth, depth):
            super().__init__()
            self.layers = nn.ModuleList(
                nn.Sequential(
                    nn.BatchNorm2d(n + i * growth),
                    nn.ReLU(True),
                    nn.Conv2d(n + i * growth, growth, 3, padding=1, bias=False),
                )
                for i in range(depth)
            )

        def forward(self, x):
            seen = [x]
            for layer in self.layers:
                seen.append(layer(torch.cat(seen, 1)))
            return torch.cat(seen, 1)

    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), Dense(8, 6, 4), nn.Conv2d(32, 16, 1, bias=False),
        nn.AvgPool2d(2), Dense(16, 6, 4), nn.BatchNorm2d(40), nn.ReLU(True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(40, 10),
    )  # fmt: skip
    return blocks.he_(model), torch.randn(8, 3, 12, 12), classify(8, 10)


@HEALTHY()
def inception_like():
    class Mixed(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.a, self.b = (
                nn.Conv2d(n, 8, 1),
                nn.Sequential(nn.Conv2d(n, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, padding=1)),
            )
            self.c = nn.Conv2d(n, 8, (1, 5), padding=(0, 2))
            self.norm = nn.BatchNorm2d(24)

        def forward(self, x):
            joined = torch.cat([self.a(x), self.b(x), self.c(F.avg_pool2d(x, 3, 1, 1))], 1)
            return F.relu(self.norm(joined))

    model = nn.Sequential(
        Mixed(3), Mixed(24), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24 * 36, 10)
    )
    return model, torch.randn(8, 3, 12, 12), classify(8, 10)


@HEALTHY()
def conv3d():
    model = nn.Sequential(
        nn.Conv3d(2, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d(2),
        nn.Conv3d(8, 16, 3, padding=1), nn.BatchNorm3d(16), nn.ReLU(), nn.AdaptiveAvgPool3d(1),
        nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip
    return model, torch.randn(4, 2, 8, 8, 8), classify(4, 5)


@HEALTHY()
def vit_by_hand():
    """Class token and positions as in timm, head zero."""

    class Net(nn.Module):
        def __init__(self, width=32):
            super().__init__()
            self.patch = nn.Conv2d(3, width, 4, 4)
            self.token = nn.Parameter(torch.zeros(1, 1, width))
            self.position = nn.Parameter(torch.randn(1, 17, width) * 0.02)
            self.blocks = nn.Sequential(*(blocks.Block(width, 4) for _ in range(3)))
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

        def forward(self, x):
            x = self.patch(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
            return self.head(self.norm(self.blocks(x))[:, 0])

    return Net(), torch.randn(6, 3, 16, 16), classify(6, 10)


@HEALTHY()
def swin_like():
    """Windows of 4×4, relative position bias tables that start at zero."""

    class WindowAttention(nn.Module):
        def __init__(self, width, heads, window=4):
            super().__init__()
            self.heads, self.window = heads, window
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
            grid = torch.stack(torch.meshgrid(*[torch.arange(window)] * 2, indexing="ij")).flatten(
                1
            )
            apart = grid[:, :, None] - grid[:, None] + window - 1
            self.register_buffer("index", apart[0] * (2 * window - 1) + apart[1], persistent=False)

        def forward(self, x):
            b, h, w, d = x.shape
            m = self.window
            x = x.view(b, h // m, m, w // m, m, d).permute(0, 1, 3, 2, 4, 5).reshape(-1, m * m, d)
            q, k, v = self.qkv(x).view(len(x), m * m, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            bias = self.table[self.index].permute(2, 0, 1)
            weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + bias).softmax(-1)
            x = self.proj((weights @ v).transpose(1, 2).reshape(-1, m * m, d))
            x = x.view(b, h // m, w // m, m, m, d).permute(0, 1, 3, 2, 4, 5)
            return x.reshape(b, h, w, d)

    class Net(nn.Module):
        def __init__(self, width=24):
            super().__init__()
            self.patch = nn.Conv2d(3, width, 2, 2)
            self.blocks = nn.Sequential(
                *(blocks.Block(width, 3, mixer=WindowAttention(width, 3)) for _ in range(2))
            )
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
                    nn.init.zeros_(module.bias)

        def forward(self, x):
            x = self.blocks(self.patch(x).permute(0, 2, 3, 1))
            return self.head(self.norm(x).mean((1, 2)))

    return Net(), torch.randn(6, 3, 16, 16), classify(6, 10)


@HEALTHY()
def mlp_mixer():
    class Mixer(nn.Module):
        def __init__(self, tokens, width):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.across = mlp(tokens, 2 * tokens, tokens, act=nn.GELU)
            self.within = mlp(width, 4 * width, width, act=nn.GELU)

        def forward(self, x):
            x = x + self.across(self.norm1(x).transpose(1, 2)).transpose(1, 2)
            return x + self.within(self.norm2(x))

    model = nn.Sequential(
        nn.Conv2d(3, 24, 4, 4), nn.Flatten(2), blocks.Lambda(lambda x: x.transpose(1, 2)),
        *(Mixer(16, 24) for _ in range(3)), nn.LayerNorm(24), blocks.Lambda(lambda x: x.mean(1)),
        nn.Linear(24, 10),
    )  # fmt: skip
    return model, torch.randn(6, 3, 16, 16), classify(6, 10)


@HEALTHY()
def dit_like():
    """adaLN-zero: the modulation and the last layer start at zero, so the output is zero."""

    class DiTBlock(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
            self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
            self.attention = blocks.Attention(width, 4)
            self.mlp = mlp(width, 4 * width, width, act=nn.GELU)
            self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
            blocks.zero_(self.modulation)

        def forward(self, x, c):
            s1, b1, g1, s2, b2, g2 = self.modulation(c)[:, None].chunk(6, -1)
            x = x + g1 * self.attention(self.norm1(x) * (1 + s1) + b1)
            return x + g2 * self.mlp(self.norm2(x) * (1 + s2) + b2)

    class Net(nn.Module):
        def __init__(self, width=32):
            super().__init__()
            self.inlet, self.position = (
                nn.Linear(8, width),
                nn.Parameter(torch.randn(1, 9, width) * 0.02),
            )
            self.time, self.label = mlp(16, width, width, act=nn.SiLU), nn.Embedding(11, width)
            nn.init.normal_(self.label.weight, std=0.02)
            self.blocks = nn.ModuleList(DiTBlock(width) for _ in range(3))
            self.norm = nn.LayerNorm(width, elementwise_affine=False)
            self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
            self.outlet = nn.Linear(width, 8)
            blocks.zero_(self.modulation, self.outlet)

        def forward(self, x, time, label):
            waves = time[:, None] * torch.exp(-torch.arange(8) / 2.0)
            c = self.time(torch.cat([waves.sin(), waves.cos()], -1)) + self.label(label)
            x = self.inlet(x) + self.position
            for block in self.blocks:
                x = block(x, c)
            shift, scale = self.modulation(c)[:, None].chunk(2, -1)
            return self.outlet(self.norm(x) * (1 + scale) + shift)

    batch = (torch.randn(6, 9, 8), torch.rand(6) * 100, torch.randint(0, 11, (6,)))
    return Net(), batch, regress(6, 9, 8)


# ── residual nets without norms, deep ────────────────────────────────────────────────────────


@HEALTHY()
def fixup_16():
    """Fixup: first layer of a block scaled by L^(−1/2), last zero, head zero, scalar biases."""

    class Shift(nn.Module):
        def __init__(self, start: float = 0.0):
            super().__init__()
            self.bias = nn.Parameter(torch.tensor([start]))

        def forward(self, x):
            return x + self.bias

    class FixupBlock(nn.Module):
        def __init__(self, n, depth):
            super().__init__()
            self.bias1, self.bias2, self.bias3, self.bias4 = Shift(), Shift(), Shift(), Shift()
            self.conv1 = nn.Conv2d(n, n, 3, padding=1, bias=False)
            self.conv2 = nn.Conv2d(n, n, 3, padding=1, bias=False)
            self.scale = nn.Parameter(torch.ones(1))
            nn.init.normal_(self.conv1.weight, std=math.sqrt(2 / (n * 9)) * depth**-0.5)
            nn.init.zeros_(self.conv2.weight)

        def forward(self, x):
            h = self.bias2(self.conv1(self.bias1(x))).relu()
            return (x + self.bias4(self.conv2(self.bias3(h)) * self.scale)).relu()

    depth = 16
    head = nn.Linear(8, 10)
    blocks.zero_(head)
    model = nn.Sequential(
        blocks.he_(nn.Conv2d(3, 8, 3, padding=1, bias=False)), Shift(), nn.ReLU(),
        *(FixupBlock(8, depth) for _ in range(depth)), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        Shift(), head,
    )  # fmt: skip
    return model, torch.randn(6, 3, 8, 8), classify(6, 10)


@HEALTHY()
def rezero_40():
    body = (blocks.Scaled(nn.Linear(32, 32), nn.ReLU()) for _ in range(40))
    model = nn.Sequential(nn.Linear(10, 32), *body, nn.Linear(32, 5))
    return model, torch.randn(32, 10), classify(32, 5)


@HEALTHY()
def rezero_transformer_12():
    class Layer(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.attention, self.mlp = blocks.Attention(width, 2), mlp(width, 2 * width, width)
            self.alpha = nn.Parameter(torch.tensor(0.0))

        def forward(self, x):
            x = x + self.alpha * self.attention(x)
            return x + self.alpha * self.mlp(x)

    model = nn.Sequential(nn.Embedding(50, 16), *(Layer(16) for _ in range(12)), nn.Linear(16, 50))
    tokens = torch.randint(0, 50, (4, 9))
    return model, tokens, next_token(tokens)


@HEALTHY()
def skipinit_16():
    def body():
        conv1, conv2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        return blocks.Scaled(nn.ReLU(), conv1, nn.ReLU(), conv2)

    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), *(body() for _ in range(16)), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip
    return blocks.he_(model), torch.randn(6, 3, 8, 8), classify(6, 10)


@HEALTHY()
def residual_60_without_norm():
    """Starts from a high loss, at PyTorch's defaults, and trains."""
    body = (blocks.Residual(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)) for _ in range(60))
    model = nn.Sequential(nn.Linear(10, 32), *body, nn.Linear(32, 5))
    return model, torch.randn(64, 10), classify(64, 5)


@HEALTHY()
def highway():
    """Gates that start closed, bias −2."""

    class Highway(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.plain, self.gate = nn.Linear(n, n), nn.Linear(n, n)
            nn.init.constant_(self.gate.bias, -2.0)

        def forward(self, x):
            gate = self.gate(x).sigmoid()
            return gate * self.plain(x).relu() + (1 - gate) * x

    model = nn.Sequential(nn.Linear(10, 32), *(Highway(32) for _ in range(10)), nn.Linear(32, 5))
    return model, torch.randn(32, 10), classify(32, 5)


# ── sequences ────────────────────────────────────────────────────────────────────────────────


def recurrent(kind, samples: int = 8, eval_mode: bool = False):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(60, 16)
            self.rnn = kind(16, 24, num_layers=2, bidirectional=True, batch_first=True, dropout=0.1)
            self.head = nn.Linear(48, 4)

        def forward(self, tokens):
            return self.head(self.rnn(self.embed(tokens))[0].mean(1))

    def build():
        return Net().train(not eval_mode), torch.randint(0, 60, (samples, 13)), classify(samples, 4)

    return build


HEALTHY.add("lstm-classifier", recurrent(nn.LSTM))
HEALTHY.add("gru-classifier", recurrent(nn.GRU))
HEALTHY.add("rnn-classifier", recurrent(nn.RNN))
HEALTHY.add("lstm-classifier-eval", recurrent(nn.LSTM, eval_mode=True))
HEALTHY.add("gru-classifier-batch-of-one", recurrent(nn.GRU, samples=1))


@HEALTHY()
def lstm_packed():
    """Sequences of different lengths, packed; the last hidden states are read."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(60, 16, padding_idx=0)
            self.rnn = nn.LSTM(16, 24, 2, bidirectional=True, batch_first=True)
            self.head = nn.Linear(48, 4)

        def forward(self, tokens, lengths):
            packed = nn.utils.rnn.pack_padded_sequence(
                self.embed(tokens), lengths.cpu(), batch_first=True, enforce_sorted=False
            )
            _, (hidden, _) = self.rnn(packed)
            return self.head(torch.cat([hidden[-2], hidden[-1]], -1))

    lengths = torch.tensor([13, 4, 9, 1, 7, 12])
    tokens = torch.randint(1, 60, (6, 13)) * (torch.arange(13) < lengths[:, None])
    return Net(), (tokens, lengths), classify(6, 4)


@HEALTHY()
def lstm_cells():
    """Cells stepped by a Python loop; forget-gate bias 1."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.second, self.head = (
                nn.LSTMCell(6, 20),
                nn.GRUCell(20, 20),
                nn.Linear(20, 3),
            )
            with torch.no_grad():
                self.cell.bias_ih[20:40].fill_(1.0)

        def forward(self, x):
            state, other = None, None
            for step in x.unbind(1):
                state = self.cell(step, state)
                other = self.second(state[0], other)
            return self.head(other)

    return Net(), torch.randn(12, 9, 6), classify(12, 3)


@HEALTHY()
def lstm_projected_language_model():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.rnn = (
                nn.Embedding(50, 16),
                nn.LSTM(16, 32, proj_size=16, batch_first=True),
            )
            self.head = nn.Linear(16, 50)
            nn.init.uniform_(self.embed.weight, -0.1, 0.1)
            self.head.weight = self.embed.weight

        def forward(self, tokens):
            return self.head(self.rnn(self.embed(tokens))[0])

    tokens = torch.randint(0, 50, (6, 12))
    return Net(), tokens, next_token(tokens)


@HEALTHY()
def sequence_to_sequence():
    """GRU encoder, GRU decoder with additive attention over the encoder's states."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.source, self.target = nn.Embedding(40, 16), nn.Embedding(40, 16)
            self.encoder, self.decoder = (
                nn.GRU(16, 24, batch_first=True),
                nn.GRU(16, 24, batch_first=True),
            )
            self.query, self.key, self.score = (
                nn.Linear(24, 24),
                nn.Linear(24, 24),
                nn.Linear(24, 1),
            )
            self.head = nn.Linear(48, 40)

        def forward(self, source, target):
            memory, state = self.encoder(self.source(source))
            out, _ = self.decoder(self.target(target), state)
            mixed = torch.tanh(self.query(out)[:, :, None] + self.key(memory)[:, None])
            weights = self.score(mixed).softmax(2)
            return self.head(torch.cat([out, (weights * memory[:, None]).sum(2)], -1))

    target = torch.randint(0, 40, (5, 8))
    return Net(), (torch.randint(0, 40, (5, 11)), target), next_token(target)


@HEALTHY()
def text_convolution():
    """TextCNN: three kernel widths, max over time."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(60, 20)
            self.convs = nn.ModuleList(nn.Conv1d(20, 12, k) for k in (2, 3, 4))
            self.dropout, self.head = nn.Dropout(0.5), nn.Linear(36, 4)

        def forward(self, tokens):
            x = self.embed(tokens).transpose(1, 2)
            return self.head(
                self.dropout(torch.cat([conv(x).relu().amax(2) for conv in self.convs], 1))
            )

    return Net(), torch.randint(0, 60, (8, 15)), classify(8, 4)


@HEALTHY()
def bag_of_words():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag, self.head = nn.EmbeddingBag(80, 16, mode="mean"), nn.Linear(16, 3)

        def forward(self, tokens, offsets):
            return self.head(self.bag(tokens, offsets))

    return Net(), (torch.randint(0, 80, (50,)), torch.arange(0, 50, 5)), classify(10, 3)


@HEALTHY()
def recommender():
    """Factorization with user and item embeddings, biases zero, a dot product."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.user, self.item = nn.Embedding(30, 12), nn.Embedding(40, 12)
            self.user_bias, self.item_bias = nn.Embedding(30, 1), nn.Embedding(40, 1)
            for table in (self.user, self.item):
                nn.init.normal_(table.weight, std=0.1)
            blocks.zero_(self.user_bias, self.item_bias)

        def forward(self, user, item):
            dot = (self.user(user) * self.item(item)).sum(-1, keepdim=True)
            return (dot + self.user_bias(user) + self.item_bias(item)).squeeze(-1)

    batch = {"user": torch.randint(0, 30, (64,)), "item": torch.randint(0, 40, (64,))}
    return Net(), batch, regress(64)


@HEALTHY()
def wavenet_like():
    """Causal dilated convolutions, gated, residual and skip paths."""

    class WaveLayer(nn.Module):
        def __init__(self, n, dilation):
            super().__init__()
            self.dilation = dilation
            self.gated, self.out = nn.Conv1d(n, 2 * n, 2, dilation=dilation), nn.Conv1d(n, 2 * n, 1)

        def forward(self, x):
            a, b = self.gated(F.pad(x, (self.dilation, 0))).chunk(2, 1)
            residual, skip = self.out(a.tanh() * b.sigmoid()).chunk(2, 1)
            return x + residual, skip

    class Net(nn.Module):
        def __init__(self, n=16):
            super().__init__()
            self.embed = nn.Embedding(32, n)
            self.layers = nn.ModuleList(WaveLayer(n, 2**i) for i in range(5))
            self.head = nn.Sequential(nn.ReLU(), nn.Conv1d(n, n, 1), nn.ReLU(), nn.Conv1d(n, 32, 1))

        def forward(self, tokens):
            x, total = self.embed(tokens).transpose(1, 2), 0
            for layer in self.layers:
                x, skip = layer(x)
                total = total + skip
            return self.head(total).transpose(1, 2)

    tokens = torch.randint(0, 32, (4, 40))
    return Net(), tokens, next_token(tokens)


@HEALTHY()
def state_space_by_hand():
    """A diagonal linear recurrence (S4D's shape), decay rates spread, an elementwise skip."""

    class SSM(nn.Module):
        def __init__(self, width, states=8):
            super().__init__()
            self.rate = nn.Parameter(torch.log(torch.arange(1.0, states + 1)).repeat(width, 1))
            self.step = nn.Parameter(torch.rand(width, 1) * 2 - 4)
            self.B, self.C = (
                nn.Parameter(torch.ones(width, states)),
                nn.Parameter(torch.randn(width, states)),
            )
            self.D = nn.Parameter(torch.ones(width))

        def forward(self, x):
            step = self.step.exp()
            decay, h, out = torch.exp(-self.rate.exp() * step), 0, []
            for u in x.unbind(1):
                h = decay * h + step * self.B * u[..., None]
                out.append((self.C * h).sum(-1))
            return torch.stack(out, 1) + self.D * x

    layers = [
        blocks.Residual(nn.LayerNorm(16), SSM(16), nn.GELU(), nn.Linear(16, 16)) for _ in range(2)
    ]
    model = nn.Sequential(
        nn.Linear(5, 16), *layers, blocks.Lambda(lambda x: x.mean(1)), nn.Linear(16, 3)
    )
    return model, torch.randn(8, 12, 5), classify(8, 3)


# ── attention ────────────────────────────────────────────────────────────────────────────────


def language_model(samples: int = 4, **options):
    def build():
        tokens = torch.randint(0, 101, (samples, 12))
        return blocks.LanguageModel(**options), tokens, next_token(tokens)

    return build


HEALTHY.add("language-model-tied", language_model())
HEALTHY.add("language-model-untied", language_model(tied=False))
HEALTHY.add("language-model-12-layers", language_model(depth=12))
HEALTHY.add("language-model-batch-of-one", language_model(samples=1))


@HEALTHY()
def language_model_eval():
    model, batch, loss = language_model()()
    return model.eval(), batch, loss


@HEALTHY()
def attention_by_einsum():
    class Net(nn.Module):
        def __init__(self, width=24):
            super().__init__()
            self.embed = nn.Embedding(40, width)
            self.blocks = nn.Sequential(
                *(blocks.Block(width, 4, mixer=blocks.EinsumAttention(width, 4)) for _ in range(2))
            )
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 40)

        def forward(self, tokens):
            return self.head(self.norm(self.blocks(self.embed(tokens))))

    tokens = torch.randint(0, 40, (4, 10))
    return Net(), tokens, next_token(tokens)


@HEALTHY()
def attention_scaled_dot_product():
    """F.scaled_dot_product_attention, separate q, k and v, grouped keys, rotary positions."""

    class Rotary(nn.Module):
        def __init__(self, width=32, heads=4, groups=2):
            super().__init__()
            self.heads, self.groups = heads, groups
            self.q, self.o = (
                nn.Linear(width, width, bias=False),
                nn.Linear(width, width, bias=False),
            )
            self.k, self.v = (
                nn.Linear(width, width * groups // heads, bias=False) for _ in range(2)
            )

        def turn(self, x):
            angle = torch.arange(x.shape[2])[:, None] / 100.0 ** (torch.arange(x.shape[3] // 2) / 4)
            a, b = x.chunk(2, -1)
            return torch.cat(
                [a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1
            )

        def forward(self, x):
            b, t, d = x.shape
            q, k, v = (
                f(x).view(b, t, -1, d // self.heads).transpose(1, 2)
                for f in (self.q, self.k, self.v)
            )
            k, v = (y.repeat_interleave(self.heads // self.groups, 1) for y in (k, v))
            y = F.scaled_dot_product_attention(self.turn(q), self.turn(k), v, is_causal=True)
            return self.o(y.transpose(1, 2).reshape(b, t, d))

    class SwiGLU(nn.Module):
        def __init__(self, n, h):
            super().__init__()
            self.gate, self.up, self.down = (
                nn.Linear(n, h, bias=False),
                nn.Linear(n, h, bias=False),
                nn.Linear(h, n, bias=False),
            )

        def forward(self, x):
            return self.down(F.silu(self.gate(x)) * self.up(x))

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.RMSNorm(32), nn.RMSNorm(32)
            self.attention, self.mlp = Rotary(), SwiGLU(32, 64)

        def forward(self, x):
            x = x + self.attention(self.norm1(x))
            return x + self.mlp(self.norm2(x))

    model = nn.Sequential(
        nn.Embedding(40, 32), Layer(), Layer(), nn.RMSNorm(32), nn.Linear(32, 40, bias=False)
    )
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
    tokens = torch.randint(0, 40, (4, 10))
    return model, tokens, next_token(tokens)


@HEALTHY()
def linear_attention():
    class LinearAttention(nn.Module):
        def __init__(self, width, heads):
            super().__init__()
            self.heads = heads
            self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)

        def forward(self, x):
            b, t, d = x.shape
            q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            q, k = F.elu(q) + 1, F.elu(k) + 1
            memory = torch.einsum("bhtk,bhtv->bhkv", k, v)
            norm = torch.einsum("bhtk,bhk->bht", q, k.sum(2))
            y = torch.einsum("bhtk,bhkv->bhtv", q, memory) / norm[..., None]
            return self.out(y.transpose(1, 2).reshape(b, t, d))

    layers = (blocks.Block(24, 4, mixer=LinearAttention(24, 4)) for _ in range(2))
    model = nn.Sequential(
        nn.Linear(6, 24), *layers, blocks.Lambda(lambda x: x.mean(1)), nn.Linear(24, 3)
    )
    return model, torch.randn(8, 10, 6), classify(8, 3)


@HEALTHY()
def detection_with_queries():
    """DETR's shape: learned queries, the same for every sample, cross-attend to the image."""

    class Net(nn.Module):
        def __init__(self, width=32):
            super().__init__()
            self.patch = nn.Conv2d(3, width, 4, 4)
            self.position = nn.Parameter(torch.rand(16, width))
            self.queries = nn.Embedding(5, width)
            self.transformer = nn.Transformer(width, 4, 1, 1, 64, batch_first=True)
            self.label, self.box = nn.Linear(width, 7), mlp(width, width, 4)

        def forward(self, image):
            memory = self.patch(image).flatten(2).transpose(1, 2) + self.position
            h = self.transformer(memory, self.queries.weight.expand(len(image), -1, -1))
            return {"labels": self.label(h), "boxes": self.box(h).sigmoid()}

    labels, boxes = torch.randint(0, 7, (4, 5)), torch.rand(4, 5, 4)

    def loss(out):
        return F.cross_entropy(out["labels"].flatten(0, 1), labels.flatten()) + F.l1_loss(
            out["boxes"], boxes
        )

    return Net(), torch.randn(4, 3, 16, 16), loss


@HEALTHY()
def transformer():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.source, self.target = nn.Embedding(40, 32), nn.Embedding(40, 32)
            self.transformer = nn.Transformer(32, 4, 2, 2, 64, batch_first=True)
            self.head = nn.Linear(32, 40)

        def forward(self, source, target):
            mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
            return self.head(
                self.transformer(
                    self.source(source), self.target(target), tgt_mask=mask, tgt_is_causal=True
                )
            )

    target = torch.randint(0, 40, (4, 7))
    return Net(), (torch.randint(0, 40, (4, 9)), target), next_token(target)


def encoder(eval_mode: bool = False, **options):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(40, 32)
            layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, **options)
            self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
            self.head = nn.Linear(32, 5)

        def forward(self, tokens):
            return self.head(
                self.encoder(self.embed(tokens), src_key_padding_mask=tokens == 0).mean(1)
            )

    def build():
        tokens = torch.randint(1, 40, (6, 9))
        tokens[2, 6:] = 0
        return Net().train(not eval_mode), tokens, classify(6, 5)

    return build


HEALTHY.add("transformer-encoder", encoder())
HEALTHY.add("transformer-encoder-eval", encoder(eval_mode=True))
HEALTHY.add(
    "transformer-encoder-pre-norm", encoder(norm_first=True, activation="gelu", dropout=0.0)
)


@HEALTHY()
def multihead_attention():
    """Separate key and value widths, so three separate projections; weights are returned too."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(24, 3, kdim=10, vdim=14, batch_first=True)
            self.head = nn.Linear(24, 3)

        def forward(self, query, key, value):
            return self.head(self.attention(query, key, value)[0].mean(1))

    batch = (torch.randn(6, 5, 24), torch.randn(6, 8, 10), torch.randn(6, 8, 14))
    return Net(), batch, classify(6, 3)


@HEALTHY()
def perceiver_like():
    class Net(nn.Module):
        def __init__(self, width=24):
            super().__init__()
            self.latents = nn.Parameter(torch.randn(6, width) * 0.02)
            self.inlet = nn.Linear(7, width)
            self.cross = nn.MultiheadAttention(width, 4, batch_first=True)
            self.norm, self.block = nn.LayerNorm(width), blocks.Block(width, 4)
            self.head = nn.Linear(width, 3)

        def forward(self, x):
            latents = self.latents.expand(len(x), -1, -1)
            latents = latents + self.cross(self.norm(latents), self.inlet(x), self.inlet(x))[0]
            return self.head(self.block(latents).mean(1))

    return Net(), torch.randn(8, 20, 7), classify(8, 3)


# ── adapters, experts, reparametrized weights ────────────────────────────────────────────────


def adapted(adapter):
    def build():
        model = blocks.LanguageModel().requires_grad_(False)
        for block in model.blocks:
            block.mixer.qkv = adapter(block.mixer.qkv)
            block.mlp[0] = adapter(block.mlp[0])
        tokens = torch.randint(0, 101, (4, 12))
        return model, tokens, next_token(tokens)

    return build


HEALTHY.add("lora", adapted(blocks.LoRA))
HEALTHY.add("lora-merged", adapted(blocks.MergedLoRA))


@HEALTHY()
def frozen_backbone():
    """Only the head is trained; the backbone runs without gradients."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = (
                blocks.ResNet(blocks.BasicBlock, (1, 1), (8, 16), 8).eval().requires_grad_(False)
            )
            self.head = nn.Linear(10, 4)

        def forward(self, x):
            with torch.no_grad():
                x = self.backbone(x)
            return self.head(x)

    return Net(), torch.randn(6, 3, 12, 12), classify(6, 4)


@HEALTHY()
def prompt_tuning():
    model = blocks.LanguageModel(length=24, tied=False).requires_grad_(False)
    model.head.requires_grad_(True)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.prompt = model, nn.Parameter(torch.randn(4, 32) * 0.02)

        def forward(self, tokens):
            x = self.model.tokens(tokens)
            x = torch.cat([self.prompt.expand(len(x), -1, -1), x], 1)
            x = x + self.model.positions(torch.arange(x.shape[1]))
            for block in self.model.blocks:
                x = block(x)
            return self.model.head(self.model.norm(x))[:, 4:]

    tokens = torch.randint(0, 101, (4, 12))
    return Net(), tokens, next_token(tokens)


@HEALTHY()
def experts_batched():
    model = nn.Sequential(
        nn.Linear(10, 16), blocks.Residual(blocks.BatchedExperts()), nn.Linear(16, 4)
    )
    return model, torch.randn(32, 10), classify(32, 4)


@HEALTHY()
def experts_routed():
    model = nn.Sequential(
        nn.Linear(10, 16), blocks.Residual(blocks.RoutedExperts()), nn.Linear(16, 4)
    )
    return model, torch.randn(64, 10), classify(64, 4)


def normed(wrap, act=nn.ReLU):
    def build():
        model = nn.Sequential(
            wrap(nn.Conv1d(4, 16, 3, padding=1)), act(), wrap(nn.Conv1d(16, 16, 3, padding=1)),
            act(),
            nn.Flatten(), wrap(nn.Linear(16 * 10, 32)), act(), nn.Linear(32, 5),
        )  # fmt: skip
        return model, torch.randn(12, 4, 10), classify(12, 5)

    return build


HEALTHY.add("weight-norm-old", normed(nn.utils.weight_norm))
HEALTHY.add("weight-norm", normed(nn.utils.parametrizations.weight_norm))
HEALTHY.add("spectral-norm-old", normed(nn.utils.spectral_norm, nn.LeakyReLU))
HEALTHY.add("spectral-norm", normed(nn.utils.parametrizations.spectral_norm, nn.LeakyReLU))


@HEALTHY()
def orthogonal_parametrization():
    wrap = nn.utils.parametrizations.orthogonal
    model = nn.Sequential(
        nn.Linear(6, 16), nn.Tanh(), wrap(nn.Linear(16, 16)), nn.Tanh(), nn.Linear(16, 3)
    )
    return model, torch.randn(16, 6), classify(16, 3)


@HEALTHY()
def normalizing_flow():
    """RealNVP with coupling nets whose last layer is zero, ActNorm of zeros."""

    class Coupling(nn.Module):
        def __init__(self, flip):
            super().__init__()
            self.flip, self.net = flip, mlp(3, 32, 32, 6, act=nn.Tanh)
            self.log_scale, self.shift = nn.Parameter(torch.zeros(6)), nn.Parameter(torch.zeros(6))
            blocks.zero_(self.net[-1])

        def forward(self, x, total):
            x = x * self.log_scale.exp() + self.shift
            a, b = x.chunk(2, -1)[:: -1 if self.flip else 1]
            s, t = self.net(a).chunk(2, -1)
            b = b * s.tanh().exp() + t
            pair = (b, a) if self.flip else (a, b)
            return torch.cat(pair, -1), total + s.tanh().sum(-1) + self.log_scale.sum()

    class Flow(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(Coupling(i % 2 == 1) for i in range(4))

        def forward(self, x):
            total = 0.0
            for layer in self.layers:
                x, total = layer(x, total)
            return 0.5 * (x**2).sum(-1) - total

    return Flow(), torch.randn(32, 6) * 2 + 1, lambda out: out.mean()


@HEALTHY()
def diffusion_unet_zero_modules():
    """guided-diffusion: the last convolution of every block and of the net is zero."""

    class TimedBlock(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.inner = nn.Sequential(nn.GroupNorm(4, n), nn.SiLU(), nn.Conv2d(n, n, 3, padding=1))
            self.time = nn.Linear(16, n)
            self.outer = nn.Sequential(nn.GroupNorm(4, n), nn.SiLU(), nn.Conv2d(n, n, 3, padding=1))
            blocks.zero_(self.outer[-1])

        def forward(self, x, time):
            return x + self.outer(self.inner(x) + self.time(F.silu(time))[:, :, None, None])

    class Net(nn.Module):
        def __init__(self, n=16):
            super().__init__()
            self.time = mlp(8, 16, 16, act=nn.SiLU)
            self.inlet = nn.Conv2d(3, n, 3, padding=1)
            self.one, self.two = TimedBlock(n), TimedBlock(n)
            self.outlet = nn.Sequential(
                nn.GroupNorm(4, n), nn.SiLU(), nn.Conv2d(n, 3, 3, padding=1)
            )
            blocks.zero_(self.outlet[-1])

        def forward(self, x, time):
            waves = time[:, None] * torch.exp(-torch.arange(4) * 1.5)
            code = self.time(torch.cat([waves.sin(), waves.cos()], -1))
            return self.outlet(self.two(self.one(self.inlet(x), code), code))

    return Net(), (torch.randn(4, 3, 8, 8), torch.rand(4) * 50), regress(4, 3, 8, 8)


# ── transformers, from configurations ────────────────────────────────────────────────────────

HF = {"needs": "transformers"}


def labelled(vocabulary: int = 211, samples: int = 3, length: int = 14):
    tokens = torch.randint(2, vocabulary, (samples, length))
    return {"input_ids": tokens, "labels": tokens.clone()}


@HEALTHY(**HF)
def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=211, n_positions=32, n_embd=48, n_layer=3, n_head=4)
    return GPT2LMHeadModel(config), labelled()


@HEALTHY(**HF)
def gpt2_eval():
    model, batch = gpt2()
    return model.eval(), batch


@HEALTHY(slow=True, **HF)
def gpt2_of_full_width():
    """The 124M model as it comes, but for its depth."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_layer=2)), labelled(50257, samples=2, length=16)


def bert_config(**more):
    from transformers import BertConfig

    return BertConfig(
        vocab_size=211,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
        **more,
    )


@HEALTHY(**HF)
def bert_classifier():
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification(bert_config(num_labels=3))
    return model, {**labelled(), "labels": torch.randint(0, 3, (3,))}


@HEALTHY(**HF)
def bert_masked():
    from transformers import BertForMaskedLM

    batch = labelled()
    batch["labels"][:, ::3] = -100
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["attention_mask"][1, 9:] = 0
    return BertForMaskedLM(bert_config()), batch


@HEALTHY(**HF)
def bert_without_loss():
    """The bare model: no labels, so the outputs are judged as they are; two of them."""
    from transformers import BertModel

    return BertModel(bert_config()), {"input_ids": torch.randint(2, 211, (3, 14))}


@HEALTHY(**HF)
def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=211,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    )
    batch = labelled()
    return T5ForConditionalGeneration(config), {**batch, "labels": batch["labels"][:, :8].clone()}


@HEALTHY(**HF)
def vit():
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_labels=5,
    )
    batch = {"pixel_values": torch.randn(3, 3, 32, 32), "labels": torch.randint(0, 5, (3,))}
    return ViTForImageClassification(config), batch


def decoder_sizes():
    return {
        "vocab_size": 211,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }


@HEALTHY(**HF)
def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**decoder_sizes())), labelled()


@HEALTHY(**HF)
def mixtral():
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(**decoder_sizes(), num_local_experts=4, num_experts_per_tok=2)
    return MixtralForCausalLM(config), labelled()


@HEALTHY(**HF)
def gemma():
    """(1 + γ) RMSNorm with γ = 0, embeddings scaled by √width."""
    from transformers import GemmaConfig, GemmaForCausalLM

    return GemmaForCausalLM(GemmaConfig(**decoder_sizes(), head_dim=8)), labelled()


@HEALTHY(**HF)
def mamba():
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=211, hidden_size=32, state_size=8, num_hidden_layers=2)
    return MambaForCausalLM(config), labelled()


@HEALTHY(**HF)
def wav2vec2():
    """Convolutional front end, positional convolution under a weight-norm parametrization, CTC."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    config = Wav2Vec2Config(
        vocab_size=20,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        conv_dim=(16, 16, 16),
        conv_stride=(5, 4, 4),
        conv_kernel=(10, 4, 4),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        ctc_loss_reduction="mean",
        mask_time_prob=0.0,
    )
    batch = {"input_values": torch.randn(2, 2400), "labels": torch.randint(1, 20, (2, 6))}
    return Wav2Vec2ForCTC(config), batch


@HEALTHY(**HF)
def clip():
    from transformers import CLIPConfig, CLIPModel

    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = CLIPConfig(
        text_config={**sizes, "vocab_size": 99, "max_position_embeddings": 16, "eos_token_id": 2},
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    batch = {
        "input_ids": torch.randint(3, 99, (6, 9)),
        "pixel_values": torch.randn(6, 3, 32, 32),
        "return_loss": True,
    }
    return CLIPModel(config), batch
