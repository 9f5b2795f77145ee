"""PyTorch modules in the shapes that people export, written by hand, with random weights: each with its inputs for
given sizes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Exported:
    """A module, the names of its inputs and outputs, its dynamic axes, and inputs for random sizes."""

    make: Callable[[], nn.Module]
    inputs: Callable[[np.random.Generator], dict[str, np.ndarray]]
    outputs: tuple[str, ...]
    axes: dict[str, dict[int, str]]

    def to_onnx(self) -> bytes:
        torch.manual_seed(0)
        module = self.make().eval()
        sample = tuple(torch.from_numpy(x) for x in self.inputs(np.random.default_rng(1)).values())
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module, sample, buffer, input_names=list(self.axes), output_names=list(self.outputs), dynamic_axes=self.axes,
                opset_version=17, dynamo=False,
            )  # fmt: skip
        return buffer.getvalue()


WIDTH, HEADS, WORDS = 32, 4, 50


def normal(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.normal(size=shape).astype(np.float32)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        batch, length, _ = x.shape
        q, k, v = (t.view(batch, length, HEADS, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        scores = q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5
        if mask is not None:
            scores = scores.masked_fill(mask[:, None, None, :] == 0, torch.finfo(scores.dtype).min)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, WIDTH))


class Layer(nn.Module):
    def __init__(self, before: bool = False) -> None:
        super().__init__()
        self.attention, self.before = Attention(), before
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        if self.before:
            x = x + self.attention(self.norm1(x), mask)
            return x + self.mlp(self.norm2(x))
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.mlp(x))


class Bert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.kinds = nn.Embedding(WORDS, WIDTH), nn.Embedding(64, WIDTH), nn.Embedding(2, WIDTH)
        self.norm, self.layers, self.pooler = nn.LayerNorm(WIDTH), nn.ModuleList([Layer(), Layer()]), nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor, kinds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.norm(self.words(tokens) + self.places(places)[None] + self.kinds(kinds))
        for layer in self.layers:
            x = layer(x, mask)
        return x, torch.tanh(self.pooler(x[:, 0]))


class Gpt(nn.Module):
    """One step of decoding with a cache of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(128, WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm1, self.norm2, self.last = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(approximate="tanh"), nn.Linear(64, WIDTH))

    def forward(self, tokens: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        batch, length = tokens.shape
        past = keys.shape[2]
        x = self.words(tokens) + self.places(torch.arange(past, past + length))[None]
        q, k, v = (t.view(batch, length, HEADS, -1).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        k, v = torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)
        scores = q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5
        seen = torch.ones(length, past + length, dtype=torch.bool).tril(past)
        scores = scores.masked_fill(~seen, float("-inf"))
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, WIDTH))
        x = x + self.mlp(self.norm2(x))
        return self.last(x) @ self.words.weight.T, k, v


class Vit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.start = nn.Conv2d(3, WIDTH, 4, 4), nn.Parameter(torch.randn(1, 1, WIDTH))
        self.layers, self.head = nn.ModuleList([Layer(True), Layer(True)]), nn.Linear(WIDTH, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.start.expand(x.shape[0], -1, -1), x], dim=1)
        for layer in self.layers:
            x = layer(x)
        return self.head(x[:, 0])


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        self.depth = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.SiLU(), nn.Conv2d(8, 16, 1), nn.Hardswish())
        self.head = nn.Linear(16, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.depth(self.first(images))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def convolved(inputs: int, outputs: int, side: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution without a bias, and a batch norm that has seen data."""
    norm = nn.BatchNorm2d(outputs)
    nn.init.normal_(norm.running_mean), nn.init.uniform_(norm.running_var, 0.5, 2)
    return nn.Sequential(nn.Conv2d(inputs, outputs, side, stride, side // 2, groups=groups, bias=False), norm)


class Inverted(nn.Module):
    """The block of mobile nets: to six times the channels, depthwise, and back; added where nothing shrinks."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        wide = 6 * inputs
        self.adds = stride == 1 and inputs == outputs
        self.block = nn.Sequential(convolved(inputs, wide, 1), nn.ReLU6(), convolved(wide, wide, 3, stride, wide), nn.ReLU6(),
                                   convolved(wide, outputs, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.block(x) if self.adds else self.block(x)


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(convolved(channels, channels, 3), nn.ReLU(), convolved(channels, channels, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.block(x))


class Classified(nn.Module):
    """Blocks behind a convolution of stride 2, and classes of what they find."""

    def __init__(self, channels: int, outputs: int, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(convolved(3, channels, 3, 2), nn.ReLU(), *blocks)
        self.head = nn.Linear(outputs, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(images).mean((2, 3)))


class Mobile(Classified):
    def __init__(self) -> None:
        super().__init__(16, 24, Inverted(16, 16, 1), Inverted(16, 24, 2), Inverted(24, 24, 1))


class ResNet(Classified):
    def __init__(self) -> None:
        super().__init__(32, 32, Residual(32), Residual(32))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.lstm = nn.Embedding(WORDS, 16), nn.LSTM(16, 24, 2, batch_first=True, bidirectional=True)
        self.gru, self.head = nn.GRU(48, 20, batch_first=True), nn.Linear(20, 7)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, (hidden, _) = self.lstm(self.words(tokens))
        x, _ = self.gru(x)
        return self.head(x), hidden


@torch.jit.script
def controlled(x: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    if bool(x.sum() > 0):
        x = x * 2.0
    else:
        x = x - 1.0
    for i in range(int(count)):
        x = torch.tanh(x) + 0.1 * i
    return x


class Control(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        return controlled(self.line(x), count)


def tokens(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.integers(0, WORDS, shape)


def bert_inputs(random: np.random.Generator) -> dict[str, np.ndarray]:
    batch, length = random.integers(1, 5), random.integers(1, 40)
    mask = (random.random((batch, length)) < 0.8).astype(np.int64)
    mask[:, 0] = 1
    return {"tokens": tokens(random, batch, length), "mask": mask, "kinds": random.integers(0, 2, (batch, length))}


def gpt_inputs(random: np.random.Generator) -> dict[str, np.ndarray]:
    batch, length, past = random.integers(1, 4), random.integers(1, 9), random.integers(0, 40)
    cache = (batch, HEADS, past, WIDTH // HEADS)
    return {"tokens": tokens(random, batch, length), "keys": normal(random, *cache), "values": normal(random, *cache)}


def images(random: np.random.Generator, least: int, step: int) -> dict[str, np.ndarray]:
    batch, height, width = random.integers(1, 4), *(int(n) * step for n in random.integers(least, least + 6, 2))
    return {"images": normal(random, batch, 3, height, width)}


def control_inputs(random: np.random.Generator) -> dict[str, np.ndarray]:
    return {"x": normal(random, random.integers(1, 9), 6), "count": np.asarray(random.integers(0, 6))}


MODELS: dict[str, Exported] = {
    "bert": Exported(Bert, bert_inputs, ("states", "pooled"),
                     {n: {0: "batch", 1: "length"} for n in ("tokens", "mask", "kinds")}),
    "gpt": Exported(Gpt, gpt_inputs, ("logits", "new_keys", "new_values"), {
        "tokens": {0: "batch", 1: "length"}, "keys": {0: "batch", 2: "past"}, "values": {0: "batch", 2: "past"}}),
    "vit": Exported(Vit, lambda r: images(r, 2, 4), ("classes",), {"images": {0: "batch", 2: "height", 3: "width"}}),
    "convolutions": Exported(Convolutions, lambda r: images(r, 6, 2), ("classes",),
                             {"images": {0: "batch", 2: "height", 3: "width"}}),
    "mobile net": Exported(Mobile, lambda r: images(r, 6, 4), ("classes",), {"images": {0: "batch", 2: "height", 3: "width"}}),
    "residual net": Exported(ResNet, lambda r: images(r, 6, 4), ("classes",), {"images": {0: "batch", 2: "height", 3: "width"}}),
    "recurrent": Exported(Recurrent, lambda r: {"tokens": tokens(r, r.integers(1, 4), r.integers(1, 20))}, ("classes", "hidden"),
                          {"tokens": {0: "batch", 1: "length"}}),
    "control": Exported(Control, control_inputs, ("y",), {"x": {0: "batch"}, "count": {}}),
}  # fmt: skip
