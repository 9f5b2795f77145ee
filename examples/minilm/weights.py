"""Finds, checks and reads the model's files: config.json and model.safetensors.

Owns the names and shapes of the tensors. A file that is missing, cut short, or holds anything else than the
architecture says is a ModelFormatError that names the file and, where there is one, the tensor."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from dvm_rt.errors import ModelFormatError

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes of a BERT encoder."""

    layers: int = 6
    hidden: int = 384
    heads: int = 12
    intermediate: int = 1536
    vocabulary: int = 30522
    positions: int = 512
    layer_norm_eps: float = 1e-12


_SIZES = {  # ours -> config.json
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "intermediate": "intermediate_size",
    "vocabulary": "vocab_size",
    "positions": "max_position_embeddings",
}
_FIXED = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}


def load(directory: Path) -> tuple[Config, Tensors]:
    """The model in a directory that holds config.json and model.safetensors."""
    config = read_config(directory / "config.json")
    return config, read_tensors(directory / "model.safetensors", config)


def read_config(path: Path) -> Config:
    """Sizes from a Hugging Face config.json; refuses another architecture than the one of `model.py`."""
    values = read_json(path)
    for key, allowed in _FIXED.items():
        if values.get(key) != allowed:
            raise ModelFormatError(
                f"minilm: {path}: {key}: another architecture, got {values.get(key)!r}, allowed {allowed!r}"
            )
    for key in _SIZES.values():
        if type(values.get(key)) is not int or values[key] < 1:
            raise ModelFormatError(
                f"minilm: {path}: {key}: not a size, got {values.get(key)!r}, allowed an integer above 0"
            )
    eps = values.get("layer_norm_eps")
    if type(eps) is not float or not 0 < eps < 1:
        raise ModelFormatError(f"minilm: {path}: layer_norm_eps: out of range, got {eps!r}, allowed 0 to 1")
    config = Config(**{ours: values[theirs] for ours, theirs in _SIZES.items()}, layer_norm_eps=eps)
    if config.hidden % config.heads:
        raise ModelFormatError(
            f"minilm: {path}: hidden_size: heads of unequal size, got {config.hidden} for {config.heads} heads, "
            f"allowed a multiple"
        )
    return config


def read_json(path: Path) -> dict:
    """A JSON object, or a ModelFormatError that names the file."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFormatError(f"minilm: {path}: cannot be read, got {error}, allowed a JSON file") from error
    if not isinstance(values, dict):
        raise ModelFormatError(
            f"minilm: {path}: wrong content, got {type(values).__name__}, allowed an object"
        )
    return values


def read_tensors(path: Path, config: Config) -> Tensors:
    """Every float32 tensor that the architecture needs, copied out of a safetensors file; others are left alone."""
    try:
        with safe_open(path, framework="numpy") as file:
            found = set(file.keys())
            return {name: _read(file, path, name, shape, found) for name, shape in shapes(config).items()}
    except (SafetensorError, OSError) as error:
        raise ModelFormatError(
            f"minilm: {path}: missing or damaged, got {error}, allowed a whole safetensors file"
        ) from error


def _read(file: safe_open, path: Path, name: str, shape: tuple[int, ...], found: set[str]) -> np.ndarray:
    if name not in found:
        raise ModelFormatError(
            f"minilm: {path}: {name}: tensor is missing, got {len(found)} others, allowed F32 {list(shape)}"
        )
    entry = file.get_slice(name)
    if entry.get_dtype() != "F32" or tuple(entry.get_shape()) != shape:
        raise ModelFormatError(
            f"minilm: {path}: {name}: wrong tensor, got {entry.get_dtype()} {entry.get_shape()}, "
            f"allowed F32 {list(shape)}"
        )
    values = file.get_tensor(name)
    if not np.isfinite(values).all():
        raise ModelFormatError(
            f"minilm: {path}: {name}: damaged tensor, got infinity or NaN, allowed finite values"
        )
    return values


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the architecture. Weight matrices are (outputs, inputs)."""
    h, i = config.hidden, config.intermediate
    table = {
        "embeddings.word_embeddings.weight": (config.vocabulary, h),
        "embeddings.position_embeddings.weight": (config.positions, h),
        "embeddings.token_type_embeddings.weight": (2, h),
        "embeddings.LayerNorm.weight": (h,),
        "embeddings.LayerNorm.bias": (h,),
    }
    parts = {
        "attention.self.query": (h, h),
        "attention.self.key": (h, h),
        "attention.self.value": (h, h),
        "attention.output.dense": (h, h),
        "attention.output.LayerNorm": (h,),
        "intermediate.dense": (i, h),
        "output.dense": (h, i),
        "output.LayerNorm": (h,),
    }
    for layer in range(config.layers):
        for part, shape in parts.items():
            table[f"encoder.layer.{layer}.{part}.weight"] = shape
            table[f"encoder.layer.{layer}.{part}.bias"] = shape[:1]
    return table


def random_tensors(config: Config, seed: int) -> Tensors:
    """Weights of the same architecture without a download: for tests. Scaled so that activations stay of order 1."""
    rng = np.random.default_rng(seed)
    return {name: _random(rng, name, shape) for name, shape in shapes(config).items()}


def _random(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    values = rng.standard_normal(shape)
    if len(shape) == 2 and "embeddings" not in name:
        values /= np.sqrt(shape[1])
    elif name.endswith("LayerNorm.weight"):
        values = 1 + values / 10
    elif len(shape) == 1:
        values /= 10
    return values.astype(np.float32)
