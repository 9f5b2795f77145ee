"""Sentences in, token ids out, by the model's own tokenizer (lower-case WordPiece between [CLS] and [SEP]).

Rules: a line of a text file is a sentence, blank lines are left out. A sentence of more than the model's longest
length (sentence_bert_config.json: 256 tokens) is cut, as the original does. tokenizer.json itself asks for a cut at
128 and for padding to 128; both are switched off: nothing here is padded to a fixed size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from dvm_rt.errors import ModelFormatError
from minilm.weights import read_json


def read_sentences(path: Path, limit: int | None = None) -> list[str]:
    """The sentences of a UTF-8 text file, one a line."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFormatError(
            f"minilm: {path}: cannot be read, got {getattr(error, 'strerror', None) or error}, allowed a UTF-8 text file"
        ) from error
    sentences = [line.strip() for line in lines if line.strip()][:limit]
    if not sentences:
        raise ModelFormatError(f"minilm: {path}: nothing to encode, got 0 sentences, allowed at least 1")
    return sentences


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a model directory, cutting at the model's longest length and padding nothing."""
    path = directory / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ModelFormatError(f"minilm: {path}: damaged, got {error}, allowed a tokenizers file") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(read_json(directory / "sentence_bert_config.json")["max_seq_length"])
    return tokenizer


def tokenize(tokenizer: Tokenizer, sentences: list[str]) -> list[np.ndarray]:
    """Token ids of each sentence, (tokens,) int32, each as long as it is."""
    return [np.array(tokenizer.encode(sentence).ids, np.int32) for sentence in sentences]


def ragged_batches(
    ids: list[np.ndarray], sizes: tuple[int, ...] = (1, 2, 3, 5, 8, 13)
) -> Iterator[list[int]]:
    """Cuts the sentences, in their order, into batches of differing size: lists of sentence numbers."""
    start = 0
    for step in range(len(ids)):
        if start >= len(ids):
            return
        size = sizes[step % len(sizes)]
        yield list(range(start, min(start + size, len(ids))))
        start += size


def pad(ids: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """One batch: ids padded to its longest sentence, (batch, tokens) int32, and the mask, 1.0 for a token."""
    longest = max(len(row) for row in ids)
    padded = np.zeros((len(ids), longest), np.int32)
    mask = np.zeros((len(ids), longest), np.float32)
    for row, values in enumerate(ids):
        padded[row, : len(values)] = values
        mask[row, : len(values)] = 1
    return padded, mask
