"""Strings, and tables of the classical machine learning domain: all on the host."""

from __future__ import annotations

import re
import unicodedata

import numpy as np

from dvm_rt.onnx.table import HOST, Call, row

Value = object
ML = "ai.onnx.ml"


def _strings(values: list[str], shape: tuple[int, ...]) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array.reshape(shape)


@row("StringConcat", kind=HOST)
def string_concat(c: Call, x: Value, y: Value) -> Value:
    return np.asarray(np.add(x.astype(object), y.astype(object)), object)


@row("StringSplit", kind=HOST)
def string_split(c: Call, x: Value) -> Value:
    delimiter, most = c.get("delimiter") or None, c.get("maxsplit", -1)
    most = -1 if most is None else most
    parts = [s.split(delimiter, most) if s else [] for s in x.ravel()]
    width = max(map(len, parts), default=0)
    flat = [p for row in parts for p in row + [""] * (width - len(row))]
    return [_strings(flat, (*x.shape, width)), np.array([len(p) for p in parts], np.int64).reshape(x.shape)]


@row("RegexFullMatch", kind=HOST)
def regex_full_match(c: Call, x: Value) -> Value:
    """The pattern is the model's; time is bounded by that of Python's re on its own inputs."""
    pattern = re.compile(c.get("pattern"))
    return np.array([pattern.fullmatch(s) is not None for s in x.ravel()], bool).reshape(x.shape)


@row("StringNormalizer", kind=HOST)
def string_normalizer(c: Call, x: Value) -> Value:
    action, sensitive, stops = c.get("case_change_action", "NONE"), c.get("is_case_sensitive", 0), c.get("stopwords", ())
    change = {"LOWER": str.lower, "UPPER": str.upper}.get(action, str)
    banned = set(stops) if sensitive else {s.lower() for s in stops}
    if x.ndim > 2 or (x.ndim == 2 and x.shape[0] != 1):
        raise c.refuse(f"shape, got {x.shape}, allowed (C,) and (1, C)")
    kept = [s for s in x.ravel() if (s if sensitive else s.lower()) not in banned]
    kept = [change(unicodedata.normalize("NFC", s)) for s in kept] or [""]
    return _strings(kept, (len(kept),) if x.ndim == 1 else (1, len(kept)))


@row("TfIdfVectorizer", kind=HOST)
def tf_idf_vectorizer(c: Call, x: Value) -> Value:
    least, most, skips = c.get("min_gram_length"), c.get("max_gram_length"), c.get("max_skip_count")
    counts, places = c.get("ngram_counts"), c.get("ngram_indexes")
    pool = list(c.get("pool_strings") or c.get("pool_int64s"))
    weights, mode = c.get("weights"), c.get("mode")
    grams: dict[tuple, int] = {}
    number = 0
    for length, start in enumerate(counts, 1):
        stop = counts[length] if length < len(counts) else len(pool)
        for at in range(start, stop, length):
            if least <= length <= most:
                grams[tuple(pool[at : at + length])] = number
            number += 1
    rows = x.reshape(1, -1) if x.ndim == 1 else x
    found = np.zeros((rows.shape[0], max(places) + 1), np.float32)
    for i, line in enumerate(rows):
        items = line.tolist()
        for length in range(least, most + 1):
            for step in range(1, (skips if length > 1 else 0) + 2):
                for at in range(len(items) - (length - 1) * step):
                    gram = grams.get(tuple(items[at + k * step] for k in range(length)))
                    if gram is not None:
                        found[i, places[gram]] += 1
    scale = np.ones(found.shape[1], np.float32)
    if weights:
        for gram, place in enumerate(places):
            scale[place] = weights[gram]
    result = {"TF": found, "IDF": (found > 0) * scale, "TFIDF": found * scale}[mode].astype(np.float32)
    return result[0] if x.ndim == 1 else result


@row("LabelEncoder", kind=HOST, domain=ML)
def label_encoder(c: Call, x: Value) -> Value:
    def attribute(side: str) -> tuple[list, str]:
        for kind in ("strings", "int64s", "floats", "tensor"):
            value = c.get(f"{side}_{kind}")
            if value is not None:
                return (value.ravel().tolist(), kind) if kind == "tensor" else (list(value), kind)
        raise c.refuse(f"{side}, got none, allowed strings, int64s, floats, tensor")

    (keys, _), (values, kind) = attribute("keys"), attribute("values")
    defaults = {"strings": "_Unused", "int64s": -1, "floats": -0.0}
    default, dtype = c.get(f"default_{kind.rstrip('s')}", defaults.get(kind)), {"strings": object, "int64s": np.int64, "floats": np.float32}.get(kind)
    if kind == "tensor":
        default, dtype = c.get("default_tensor").ravel()[0].item(), c.get("values_tensor").dtype
    known = dict(zip(keys, values, strict=True))
    nan = next((v for k, v in known.items() if k != k), default)
    flat = [nan if v != v else known.get(v, default) for v in x.ravel().tolist()]
    return _strings(flat, x.shape) if dtype is object else np.array(flat, dtype).reshape(x.shape)


@row("ArrayFeatureExtractor", kind=HOST, domain=ML)
def array_feature_extractor(c: Call, x: Value, places: Value) -> Value:
    result = x[..., places.reshape(-1)]
    return result.reshape(1, -1) if x.ndim == 1 else result


@row("Binarizer", kind=HOST, domain=ML)
def binarizer(c: Call, x: Value) -> Value:
    return (x > c.get("threshold", 0.0)).astype(x.dtype)
