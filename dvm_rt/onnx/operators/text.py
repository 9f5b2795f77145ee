"""Strings, and tables of the classical machine learning domain: all on the host."""

from __future__ import annotations

import re
import unicodedata

import numpy as np

from dvm_rt.array.array import Array
from dvm_rt.onnx.operators.elementwise import cast
from dvm_rt.onnx.table import HOST, Call, row
from dvm_rt.onnx.values import numpy_dtype

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
    try:
        pattern = re.compile(c.get("pattern"))
    except (re.error, TypeError) as error:
        raise c.refuse(f"pattern, got {c.get('pattern')!r} ({error}), allowed what Python's re takes") from None
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
    default, dtype = c.get(f"default_{kind.rstrip('s')}", defaults.get(kind)), {"strings": object,
        "int64s": np.int64, "floats": np.float32}.get(kind)
    if kind == "tensor":
        default, dtype = c.get("default_tensor").ravel()[0].item(), c.get("values_tensor").dtype
    known = dict(zip(keys, values, strict=True))
    nan = next((v for k, v in known.items() if k != k), default)
    flat = [nan if v != v else known.get(v, default) for v in x.ravel().tolist()]
    return _strings(flat, x.shape) if dtype is object else np.array(flat, dtype).reshape(x.shape)



@row("Binarizer", domain=ML)
def binarizer(c: Call, x: Value) -> Value:
    threshold = c.get("threshold", 0.0)
    return cast(c, c.xp.greater(x, threshold if isinstance(x, Array) else np.asarray(threshold, x.dtype)), numpy_dtype(x))


_MODES = (np.less_equal, np.less, np.greater_equal, np.greater, np.equal, np.not_equal)  # 6: whether it is a member of a set
_MEMBER = 6
_POST = ("none", "softmax", "logistic", "softmax of what is not 0", "probit")


@row("TreeEnsemble", kind=HOST, domain=ML)
def tree_ensemble(c: Call, x: Value) -> Value:
    """All rows walk down a tree at once, level by level; a walk of more levels than there are nodes is a cycle."""
    modes, splits = np.asarray(c.get("nodes_modes")), np.asarray(c.get("nodes_splits"))
    feature = np.asarray(c.get("nodes_featureids"))
    ways = [(np.asarray(c.get(f"nodes_{side}leafs")), np.asarray(c.get(f"nodes_{side}nodeids"))) for side in ("false", "true")]
    lost = np.asarray(c.get("nodes_missing_value_tracks_true", np.zeros(len(modes), np.int64))) != 0
    members, rows = _member_sets(c, modes), np.arange(x.shape[0])
    result, targets = [], np.asarray(c.get("leaf_targetids"))
    for root in c.get("tree_roots"):
        at = np.full(x.shape[0], root)
        alone = bool(ways[0][0][root] and ways[1][0][root] and ways[0][1][root] == ways[1][1][root])
        leaf = np.full(x.shape[0], alone)
        for _ in range(len(modes)):
            if leaf.all():
                break
            value = x[rows, feature[np.where(leaf, 0, at)]]
            true = _holds(modes, splits, members, np.where(leaf, 0, at), value) | (lost[np.where(leaf, 0, at)] & np.isnan(value))
            end, into = (np.where(true, ways[1][k][np.where(leaf, 0, at)], ways[0][k][np.where(leaf, 0, at)]) for k in (0, 1))
            at, leaf = np.where(leaf, at, into), leaf | (end != 0)
        if not leaf.all():
            raise c.refuse(f"tree from node {root}, got a cycle, allowed trees")
        result.append(at)
    return _transformed(c, _aggregated(c, x, np.asarray(c.get("leaf_weights")), targets, result))


def _member_sets(c: Call, modes: np.ndarray) -> dict[int, np.ndarray]:
    """node -> the members of its set: one after the other in the attribute, each ended by a NaN."""
    values = np.asarray(c.get("membership_values", np.zeros(0, np.float32)))
    sets = np.split(values, np.flatnonzero(np.isnan(values)) + 1)[:-1] if values.size else []
    places = np.flatnonzero(modes == _MEMBER)
    if len(sets) != len(places):
        raise c.refuse(f"membership_values, got {len(sets)} sets, allowed {len(places)}")
    return {int(p): s[:-1] for p, s in zip(places, sets, strict=True)}


def _holds(modes: np.ndarray, splits: np.ndarray, members: dict[int, np.ndarray], at: np.ndarray,
           value: np.ndarray) -> np.ndarray:
    """Whether the condition of node at[i] holds for value[i]."""
    held = np.zeros(at.shape, bool)
    for mode in np.unique(modes[at]):
        here = modes[at] == mode
        if mode == _MEMBER:
            held[here] = [np.isin(v, members[int(n)]) for n, v in zip(at[here], value[here], strict=True)]
        else:
            held[here] = _MODES[mode](value[here], splits[at[here]])
    return held


def _aggregated(c: Call, x: np.ndarray, weights: np.ndarray, targets: np.ndarray, leaves: list[np.ndarray]) -> np.ndarray:
    how = c.get("aggregate_function", 1)  # 0: average, 1: sum, 2: min, 3: max
    start = {2: np.finfo(x.dtype).max, 3: np.finfo(x.dtype).min}.get(how, 0)
    total = np.full((x.shape[0], c.get("n_targets")), start, x.dtype)
    rows = np.arange(x.shape[0])
    for at in leaves:
        place, weight = (rows, targets[at]), weights[at].astype(x.dtype)
        if how in (2, 3):
            total[place] = (np.minimum if how == 2 else np.maximum)(total[place], weight)
        else:
            total[place] += weight / x.dtype.type(len(leaves)) if how == 0 else weight
    return total


def _transformed(c: Call, scores: np.ndarray) -> np.ndarray:
    how = c.get("post_transform", 0)
    if how == 0:
        return scores
    if how == 2:
        return (1 / (1 + np.exp(-scores))).astype(scores.dtype)
    if how in (1, 3):
        kept = scores != 0 if how == 3 else np.ones(scores.shape, bool)
        powers = np.where(kept, np.exp(scores - scores.max(-1, keepdims=True)), 0)
        return (powers / np.maximum(powers.sum(-1, keepdims=True), np.finfo(scores.dtype).tiny)).astype(scores.dtype)
    raise c.refuse(f"post_transform, got {_POST[how] if how < len(_POST) else how}, allowed {', '.join(_POST[:4])}")
