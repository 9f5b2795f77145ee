"""MiniLM, one sentence at a time, one thread: dvm_rt inline against PyTorch eager and ONNX Runtime in one run.

    python benchmarks/minilm.py [--file TEXT] [--limit N] [--passes N]

Rules: all engines get the same token ids and give a normalised embedding as a NumPy array; before anything is timed,
every sentence of every engine is held against NumPy float64. The engines take turns sentence by sentence, and which one
begins rotates, so a slow spell of the machine hits all. The first pass gives the first-seen shapes; a sentence's time
is its median over the later passes. PyTorch is a hand-written module in inference mode, query, key and value in one
product, scaled_dot_product_attention; ONNX Runtime runs the export of that module, all optimisations on. An engine that
is not installed is named as absent. Needs: pip install '.[minilm]', and torch, onnx and onnxruntime for the peers."""

from __future__ import annotations

import argparse
import io
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))

from minilm import fetch, tokens, weights
from minilm.job import ERROR_MAX
from minilm.model import Encoder
from minilm.reference import Reference

import dvm_rt as dvm

Embed = Callable[[np.ndarray], np.ndarray]  # (tokens,) int32 -> (hidden,) float32
US = 1e-3


def main() -> int:
    arguments = _arguments()
    directory = fetch.find(fetch.cache_directory()) or fetch.fetch(fetch.cache_directory())
    config, tensors = weights.load(directory)
    sentences = tokens.read_sentences(arguments.file, arguments.limit)
    ids = tokens.tokenize(tokens.load_tokenizer(directory), sentences)
    with dvm.Runtime(inline=True):
        engines = {"dvm_rt": _ours(config, tensors)} | _peers(config, tensors)
        first, later = _times(engines, ids, arguments.passes)
        wrong = _check(engines, Reference(config, tensors), ids)
    _report(engines, ids, first, later)
    return 1 if wrong else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--file",
        type=Path,
        default=ROOT / "examples" / "minilm" / "sentences.txt",
        help="one sentence a line",
    )
    parser.add_argument("--limit", type=int, help="only the first so many sentences")
    parser.add_argument("--passes", type=int, default=3, help="timed passes after the first (default 3)")
    return parser.parse_args()


# ---- engines ----
def _ours(config: weights.Config, tensors: weights.Tensors) -> Embed:
    encoder = Encoder(config, tensors)
    return lambda ids: np.asarray(encoder.embed(dvm.asarray(ids[None])))[0]


def _peers(config: weights.Config, tensors: weights.Tensors) -> dict[str, Embed]:
    try:
        import torch
    except ImportError:
        print("PyTorch, ONNX Runtime: absent (torch is not installed)")
        return {}
    torch.set_num_threads(1)
    module = _torch_module(config, tensors)
    peers: dict[str, Embed] = {"PyTorch eager": _torch(module)}
    try:
        peers["ONNX Runtime"] = _onnxruntime(module)
    except ImportError as error:
        print(f"ONNX Runtime: absent (no {error.name})")
    return peers


def _torch_module(config: weights.Config, tensors: weights.Tensors):
    """The same encoder for one sentence: (1, tokens) int64 -> (1, hidden)."""
    import torch
    from torch.nn import functional as F

    w = {name: torch.from_numpy(array) for name, array in tensors.items()}
    places = w["embeddings.position_embeddings.weight"] + w["embeddings.token_type_embeddings.weight"][0]
    heads, hidden, eps = config.heads, config.hidden, config.layer_norm_eps
    three = [
        tuple(
            torch.cat([w[f"encoder.layer.{i}.attention.self.{n}.{kind}"] for n in ("query", "key", "value")])
            for kind in ("weight", "bias")
        )
        for i in range(config.layers)
    ]

    def linear(x, name: str):
        return F.linear(x, w[name + ".weight"], w[name + ".bias"])

    def norm(x, name: str):
        return F.layer_norm(x, (hidden,), w[name + ".weight"], w[name + ".bias"], eps)

    class Module(torch.nn.Module):
        def forward(self, ids):
            batch, length = ids.shape
            x = norm(
                F.embedding(ids, w["embeddings.word_embeddings.weight"]) + places[:length],
                "embeddings.LayerNorm",
            )
            for i in range(config.layers):
                layer = f"encoder.layer.{i}."
                qkv = (
                    F.linear(x, *three[i])
                    .view(batch, length, 3, heads, hidden // heads)
                    .permute(2, 0, 3, 1, 4)
                )
                mixed = (
                    F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
                    .transpose(1, 2)
                    .reshape(batch, length, hidden)
                )
                x = norm(
                    x + linear(mixed, layer + "attention.output.dense"), layer + "attention.output.LayerNorm"
                )
                inner = F.gelu(linear(x, layer + "intermediate.dense"))
                x = norm(x + linear(inner, layer + "output.dense"), layer + "output.LayerNorm")
            return F.normalize(x.mean(dim=1), dim=1)

    return Module().eval()


def _torch(module) -> Embed:
    import torch

    def embed(ids: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(ids.astype(np.int64))[None]).numpy()[0]

    return embed


def _onnxruntime(module) -> Embed:
    import onnxruntime
    import torch

    file = io.BytesIO()
    example = torch.zeros((1, 7), dtype=torch.int64)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the newer exporter, which needs another package
        torch.onnx.export(
            module, (example,), file, input_names=["ids"], dynamic_axes={"ids": {1: "tokens"}}, dynamo=False
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    return lambda ids: session.run(None, {"ids": ids.astype(np.int64)[None]})[0][0]


# ---- measuring ----
def _times(
    engines: dict[str, Embed], ids: list[np.ndarray], passes: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Nanoseconds of every sentence in the first pass, and the median of the later ones. Planning is not in them: a
    sentence of a length that does not occur is embedded before."""
    names = list(engines)
    for embed in engines.values():
        embed(np.full(max(map(len, ids)) + 1, ids[0][0], np.int32)[:257])
    taken = {name: np.zeros((1 + passes, len(ids))) for name in names}
    for turn in range(1 + passes):
        for number, sentence in enumerate(ids):
            for step in range(len(names)):
                name = names[(step + number + turn) % len(names)]
                began = time.perf_counter_ns()
                engines[name](sentence)
                taken[name][turn, number] = time.perf_counter_ns() - began
    return {name: t[0] for name, t in taken.items()}, {
        name: np.median(t[1:], axis=0) for name, t in taken.items()
    }


def _check(engines: dict[str, Embed], reference: Reference, ids: list[np.ndarray]) -> bool:
    wrong = False
    oracle = [list(reference.embeddings(sentence))[-1] for sentence in ids]
    for name, embed in engines.items():
        error = max(
            float(np.abs(embed(sentence) - wanted).max())
            for sentence, wanted in zip(ids, oracle, strict=True)
        )
        wrong |= not error <= ERROR_MAX
        print(f"{name:14} largest difference from float64: {error:.2e}")
    return wrong


def _report(
    engines: dict[str, Embed],
    ids: list[np.ndarray],
    first: dict[str, np.ndarray],
    later: dict[str, np.ndarray],
) -> None:
    lengths = np.array([len(sentence) for sentence in ids])
    news = np.array([n not in lengths[:i] for i, n in enumerate(lengths)])
    print(f"\n{len(ids)} sentences, {lengths.min()} to {lengths.max()} tokens; us per sentence")
    print(
        f"{'':14} {'median':>8} {'mean':>8} {'ratio to dvm_rt':>16}   first-seen shape p50/p99   same sentences again p50/p99"
    )
    for name in engines:
        ratio = np.median(later[name] / later["dvm_rt"])
        new, again = (np.percentile(t[name][news], (50, 99)) * US for t in (first, later))
        print(
            f"{name:14} {np.median(later[name]) * US:8.0f} {later[name].mean() * US:8.0f} {ratio:16.2f}"
            f"   {new[0]:12.0f} {new[1]:8.0f} {again[0]:20.0f} {again[1]:8.0f}"
        )
    print("\nby length: median us " + "  ".join(engines))
    for low, high in ((1, 8), (9, 16), (17, 32), (33, 64), (65, 512)):
        part = (lengths >= low) & (lengths <= high)
        if part.any():
            print(
                f"  {low:3}..{high:3} tokens ({part.sum():3}): "
                + "  ".join(f"{np.median(t[part]) * US:8.0f}" for t in later.values())
            )


if __name__ == "__main__":
    sys.exit(main())
