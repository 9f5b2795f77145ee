"""Images: resizing, sampling on grids, regions of interest.

Resize is one product with a matrix for each axis that changes: the matrix is made on the host of the sizes, the product runs
as a matmul. GridSample is gathers at the places that the grid says; RoiAlign and DeformConv run on the host."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, floor

import numpy as np

from dvm_rt.array.array import Array
from dvm_rt.errors import ShapeError
from dvm_rt.graph.symbols import Dim
from dvm_rt.onnx.operators.elementwise import cast
from dvm_rt.onnx.operators.picking import counted, rows_at
from dvm_rt.onnx.table import HOST, Call, row
from dvm_rt.onnx.values import lift, numpy_dtype, sizes

Value = object
FLOAT64 = np.dtype(np.float64)


# ---- resize -------------------------------------------------------------------------------------------------------


def _number_list(x: Value) -> list[float] | None:
    return None if x is None or np.asarray(x).size == 0 else [v for v in np.asarray(x).ravel()]


@row("Resize", on_host=(1, 2, 3), since=11)
def resize(c: Call, x: Value, roi: Value = None, scales: Value = None, sizes: Value = None) -> Value:
    return _resized(c, x, _number_list(roi), _number_list(scales), _number_list(sizes))


@row("Resize", on_host=(1,), since=10)
def resize_by_scales(c: Call, x: Value, scales: Value) -> Value:
    return _resized(c, x, None, _number_list(scales), None)


@row("Upsample", on_host=(1,))
def upsample(c: Call, x: Value, scales: Value = None) -> Value:
    return _resized(c, x, None, _number_list(scales) if scales is not None else list(c.get("scales")), None)


def _resized(c: Call, x: Value, roi: list | None, scales: list | None, sizes: list | None) -> Value:
    rank = len(x.shape)
    axes = [a % rank for a in c.get("axes", range(rank))]
    if any(isinstance(x.shape[a], Dim) for a in axes if not _unchanged(axes.index(a), scales)) or any(isinstance(n,
            Dim) for n in sizes or ()):
        raise ShapeError(f"sizes that are resized, got {x.shape}, allowed numbers")
    by_scales = scales is not None
    scales, sizes = _sizes(c, [x.shape[a] for a in axes], scales, sizes)
    mode, way = c.get("mode", "nearest"), c.get("coordinate_transformation_mode", "half_pixel" if c.opset >= 11 else "asymmetric")
    if c.opset < 11:
        mode = {"linear": "linear", "bilinear": "linear"}.get(mode, mode)
    wide, outside = cast(c, x, np.dtype(np.float32)) if numpy_dtype(x) != np.float64 else x, None
    for i, axis in enumerate(axes):
        n, m, scale = x.shape[axis], int(sizes[i]), scales[i]
        region = (roi[i], roi[i + len(axes)]) if roi else (0.0, 1.0)
        if n == m and scale == 1 and way != "tf_crop_and_resize":
            continue
        places = _places(np.arange(m), n, n * float(scale) if by_scales else float(m), float(scale), way, region)
        if way == "tf_crop_and_resize":
            beyond = (places < 0) | (places > n - 1)
            lined = beyond.reshape([-1 if a == axis else 1 for a in range(rank)])
            outside = lined if outside is None else outside | lined
        matrix = _matrix(places, n, float(scale), mode, c)
        wide = _along(c, wide, matrix.astype(numpy_dtype(wide)), axis)
    result = cast(c, _rounded(c, wide, numpy_dtype(x)), numpy_dtype(x))
    if outside is not None and outside.any():
        value = np.asarray(c.get("extrapolation_value", 0.0), numpy_dtype(x))
        where = lift(outside) if isinstance(x, Array) else outside
        result = c.xp.where(where, lift(value) if isinstance(x, Array) else value, result)
    return result


def _unchanged(i: int, scales: list | None) -> bool:
    return scales is not None and scales[i] == 1


def _rounded(c: Call, x: Value, dtype: np.dtype) -> Value:
    return c.xp.round(x) if dtype.kind in "iu" else x


def _sizes(c: Call, given: list, scales: list | None, sizes: list | None) -> tuple[list[float], list[int]]:
    if scales is not None:
        return [float(s) for s in scales], [n if s == 1 else floor(n * float(s)) for n, s in zip(given, scales, strict=True)]
    policy = c.get("keep_aspect_ratio_policy", "stretch")
    ratios = [m / n for m, n in zip(sizes, given, strict=True)]
    if policy == "stretch":
        return ratios, [int(m) for m in sizes]
    one = min(ratios) if policy == "not_larger" else max(ratios)
    return [one] * len(given), [int(floor(one * n + 0.5)) for n in given]


def _places(out: np.ndarray, n: int, m: float, scale: float, way: str, region: tuple[float, float]) -> np.ndarray:
    """Where each element of the result lies in the input; m: the size of the result, before it is rounded down."""
    count = len(out)
    if way == "align_corners":
        return out * ((n - 1) / (m - 1)) if count > 1 else np.zeros(count)
    if way == "asymmetric":
        return out / scale
    if way == "pytorch_half_pixel":
        return (out + 0.5) / scale - 0.5 if count > 1 else np.zeros(count)
    if way == "tf_half_pixel_for_nn":
        return (out + 0.5) / scale
    if way == "tf_crop_and_resize":
        start, end = float(region[0]), float(region[1])
        if count == 1:
            return np.full(count, 0.5 * (start + end) * (n - 1))
        return start * (n - 1) + out * (end - start) * (n - 1) / (m - 1)
    if way == "half_pixel_symmetric":
        adjusted = count / (scale * n)
        return n / 2 * (1 - adjusted) + (out + 0.5) / scale - 0.5
    return (out + 0.5) / scale - 0.5


def _matrix(places: np.ndarray, n: int, scale: float, mode: str, c: Call) -> np.ndarray:
    """(m, n): the share of each input element in each element of the result."""
    matrix = np.zeros((len(places), n))
    stretch = min(scale, 1.0) if c.get("antialias", 0) else 1.0
    if mode == "nearest":
        for row_number, place in enumerate(places):
            matrix[row_number, int(np.clip(_nearest(place, c.get("nearest_mode", "round_prefer_floor"
                if c.opset >= 11 else "floor")), 0, n - 1))] = 1
        return matrix
    kernel, reach = (_linear, 1) if mode == "linear" else (_cubic(c.get("cubic_coeff_a", -0.75)), 2)
    reach = reach / stretch
    for row_number, place in enumerate(places):
        first, last = ceil(place - reach), floor(place + reach)
        taps = np.arange(first, last + 1)
        weights = np.array([kernel((t - place) * stretch) for t in taps])
        if c.get("exclude_outside", 0):
            weights = np.where((taps < 0) | (taps >= n), 0, weights)
        weights = weights / weights.sum()
        np.add.at(matrix[row_number], np.clip(taps, 0, n - 1), weights)
    return matrix


def _nearest(place: float, mode: str) -> int:
    if mode == "round_prefer_floor":
        return ceil(place - 0.5)
    if mode == "round_prefer_ceil":
        return floor(place + 0.5)
    return floor(place) if mode == "floor" else ceil(place)


def _linear(t: float) -> float:
    return max(0.0, 1 - abs(t))


def _cubic(a: float) -> Callable[[float], float]:
    """Keys 1981."""

    def weight(t: float) -> float:
        t = abs(t)
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0

    return weight


def _along(c: Call, x: Value, matrix: np.ndarray, axis: int) -> Value:
    """x times the matrix along one axis; where every row of it is a single 1 it is a gather."""
    rank = len(x.shape)
    if ((matrix == 0) | (matrix == 1)).all() and (matrix.sum(1) == 1).all():
        places = matrix.argmax(1).astype(np.int64)
        return c.xp.take(x, lift(places) if isinstance(x, Array) else places, axis=axis)
    own = lift(np.ascontiguousarray(matrix)) if isinstance(x, Array) else matrix
    order = [i for i in range(rank) if i != axis] + [axis]
    moved = c.xp.matmul(c.xp.permute_dims(x, tuple(order)), own.T)
    return c.xp.permute_dims(moved, tuple(order.index(i) for i in range(rank)))


# ---- sampling -----------------------------------------------------------------------------------------------------


@row("GridSample")
def grid_sample(c: Call, x: Value, grid: Value) -> Value:
    """x (N, C, *S) at places (N, *O, rank) in -1..1, the last coordinate first."""
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(c.get("mode", "linear"), c.get("mode", "linear"))
    padding, align, dtype = c.get("padding_mode", "zeros"), bool(c.get("align_corners", 0)), numpy_dtype(x)
    space, x, grid = x.shape[2:], cast(c, x, FLOAT64), cast(c, grid, FLOAT64)
    places = []
    for i, n in enumerate(space):
        at = c.xp.add(grid[..., len(space) - 1 - i], 1.0)
        scaled = c.xp.multiply(at, _half(c, n - 1, x)) if align else c.xp.subtract(c.xp.multiply(at, _half(c, n, x)), 0.5)
        places.append(scaled)
    if mode == "nearest":
        return cast(c, _picked(c, x, [c.xp.round(p) for p in places], padding, align), dtype)
    if mode == "linear" and padding != "zeros":
        places = [_inside(c, p, n, padding, align) for p, n in zip(places, space, strict=True)]
    reach, weigh = (range(0, 2), _linear_weight) if mode == "linear" else (range(-1, 3), _cubic_weight)
    return cast(c, _weighed(c, x, places, reach, weigh, padding, align), dtype)


def _half(c: Call, n: object, x: Value) -> Value:
    """n / 2 beside x; n may be symbolic."""
    return c.xp.multiply(cast(c, lift(sizes([n])), FLOAT64), 0.5) if isinstance(n, Dim) else n / 2


def _weighed(
    c: Call, x: Value, places: list[Value], reach: range, weigh: Callable[[Call, Value], Value], padding: str, align: bool
) -> Value:
    """The sum over neighbours of what is there times its weight."""
    base, total = [c.xp.floor(p) for p in places], None
    for tap in np.ndindex(*([len(reach)] * len(places))):
        taps = [c.xp.add(b, float(reach[t])) for b, t in zip(base, tap, strict=True)]
        weight = None
        for p, t in zip(places, taps, strict=True):
            one = weigh(c, c.xp.abs(c.xp.subtract(p, t)))
            weight = one if weight is None else c.xp.multiply(weight, one)
        part = c.xp.multiply(_picked(c, x, taps, padding, align), c.xp.expand_dims(weight, axis=1))
        total = part if total is None else c.xp.add(total, part)
    return total


def _linear_weight(c: Call, distance: Value) -> Value:
    return c.xp.maximum(c.xp.subtract(1.0, distance), 0.0)


def _cubic_weight(c: Call, distance: Value) -> Value:
    """Keys 1981, a = -0.75."""
    a, t = -0.75, distance
    near = ((a + 2) * t - (a + 3)) * t * t + 1.0
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return c.xp.where(c.xp.less_equal(t, 1.0), near, c.xp.where(c.xp.less(t, 2.0), far, 0.0))


def _inside(c: Call, place: Value, n: object, padding: str, align: bool) -> Value:
    """Places beyond the border: at it, or reflected."""
    last = c.xp.multiply(_half(c, n - 1, place), 2.0)
    if padding == "border":
        return c.xp.minimum(c.xp.maximum(place, 0.0), last)
    low, span = (0.0, last) if align else (-0.5, c.xp.add(last, 1.0))
    if align and isinstance(n, int) and n == 1:
        return c.xp.multiply(place, 0.0)
    folded = c.xp.remainder(c.xp.abs(c.xp.subtract(place, low)), c.xp.multiply(span, 2.0))
    folded = c.xp.where(c.xp.greater(folded, span), c.xp.subtract(c.xp.multiply(span, 2.0), folded), folded)
    return c.xp.minimum(c.xp.maximum(c.xp.add(folded, low), 0.0), last)


def _picked(c: Call, x: Value, taps: list[Value], padding: str, align: bool) -> Value:
    """x[n, :, taps..] with what lies outside as the padding says."""
    outside, whole = None, []
    for tap, n in zip(taps, x.shape[2:], strict=True):
        if padding == "zeros":
            last = c.xp.multiply(_half(c, n - 1, x), 2.0)
            beyond = c.xp.logical_or(c.xp.less(tap, 0.0), c.xp.greater(tap, last))
            outside = beyond if outside is None else c.xp.logical_or(outside, beyond)
            tap = c.xp.minimum(c.xp.maximum(tap, 0.0), last)
        else:
            tap = c.xp.round(_inside(c, tap, n, padding, align))
        whole.append(c.xp.where(c.xp.isnan(tap), 0.0, tap))
    batch = counted(c, x.shape[0], 0, len(taps[0].shape))
    rank = len(x.shape)
    rows = rows_at(c, c.xp.permute_dims(x, (0, *range(2, rank), 1)), [batch, *whole])
    values = c.xp.permute_dims(rows, (0, rank - 1, *range(1, rank - 1)))
    return values if outside is None else c.xp.where(c.xp.expand_dims(outside, axis=1), 0.0, values)


@row("AffineGrid", on_host=(1,))
def affine_grid(c: Call, theta: Value, size: Value) -> Value:
    """Places of a grid under an affine map: one product."""
    space, align = [int(n) for n in np.asarray(size)[2:]], bool(c.get("align_corners", 0))
    lines = [np.linspace(-1, 1, n) if align else (np.arange(n) * 2 + 1) / n - 1 for n in space]
    if align:
        lines = [np.linspace(-1, 1, n) if n > 1 else np.zeros(1) - 1 for n in space]
    grid = np.stack([*np.meshgrid(*lines, indexing="ij")[::-1], np.ones(space)], axis=-1).reshape(-1, len(space) + 1)
    grid = grid.astype(numpy_dtype(theta))
    own = lift(np.ascontiguousarray(grid)) if isinstance(theta, Array) else grid
    result = c.xp.matmul(own, c.xp.permute_dims(theta, (0, 2, 1)))
    return c.xp.reshape(result, (theta.shape[0], *space, len(space)))


def _bilinear(plane: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """(C, H, W) at places; those beyond the border by more than 1 are 0, as RoiAlign has it."""
    h, w = plane.shape[1:]
    outside = (y < -1) | (y > h) | (x < -1) | (x > w)
    y, x = np.clip(y, 0, h - 1), np.clip(x, 0, w - 1)
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    bottom, right = np.minimum(top + 1, h - 1), np.minimum(left + 1, w - 1)
    dy, dx = y - top, x - left
    corners = [plane[:, top, left] * (1 - dy) * (1 - dx), plane[:, top, right] * (1 - dy) * dx,
               plane[:, bottom, left] * dy * (1 - dx), plane[:, bottom, right] * dy * dx]
    return np.where(outside, 0, np.stack(corners))


@row("RoiAlign", kind=HOST)
def roi_align(c: Call, x: Value, rois: Value, batch: Value) -> Value:
    height, width, ratio = c.get("output_height", 1), c.get("output_width", 1), c.get("sampling_ratio", 0)
    scale, average = c.get("spatial_scale", 1.0), c.get("mode", "avg") == "avg"
    shift = 0.5 if c.get("coordinate_transformation_mode", "half_pixel" if c.opset >= 16
                         else "output_half_pixel") == "half_pixel" else 0.0
    result = np.zeros((rois.shape[0], x.shape[1], height, width), x.dtype)
    for i, (x1, y1, x2, y2) in enumerate(rois.astype(np.float64) * scale - shift):
        w, h = x2 - x1, y2 - y1
        if not shift:
            w, h = max(w, 1.0), max(h, 1.0)
        rows, columns = (ratio, ratio) if ratio > 0 else (ceil(h / height), ceil(w / width))
        ys = y1 + (np.arange(height)[:, None] + (np.arange(rows) + 0.5) / rows) * (h / height)
        xs = x1 + (np.arange(width)[:, None] + (np.arange(columns) + 0.5) / columns) * (w / width)
        corners = _bilinear(x[batch[i]], ys[:, :, None, None], xs[None, None])
        taken = corners.sum(0) if average else corners.max(0)
        result[i] = taken.mean(axis=(2, 4)) if average else taken.max(axis=(2, 4))
    return result


@row("NonMaxSuppression", kind=HOST)
def non_max_suppression(c: Call, boxes: Value, scores: Value, most: Value = None, overlap: Value = None,
                        least: Value = None) -> Value:
    def scalar(value: Value, default: float) -> float:
        return default if value is None or np.asarray(value).size == 0 else np.asarray(value).reshape(-1)[0].item()

    limit, share, floor_score = int(scalar(most, 0)), scalar(overlap, 0.0), scalar(least, -np.inf)
    corners = boxes.astype(np.float64)
    if c.get("center_point_box", 0):
        middle, half = corners[..., :2], corners[..., 2:] / 2
        corners = np.concatenate([middle - half, middle + half], -1)
    low = np.minimum(corners[..., :2], corners[..., 2:])
    high = np.maximum(corners[..., :2], corners[..., 2:])
    chosen: list[tuple[int, int, int]] = []
    for b in range(scores.shape[0]):
        for k in range(scores.shape[1]):
            kept: list[int] = []
            for i in np.argsort(-scores[b, k], kind="stable"):
                if len(kept) >= limit or (least is not None and scores[b, k, i] <= floor_score):
                    break
                if all(_overlap(low[b], high[b], i, j) <= share for j in kept):
                    kept.append(int(i))
            chosen += [(b, k, i) for i in kept]
    return np.array(chosen, np.int64).reshape(-1, 3)


def _overlap(low: np.ndarray, high: np.ndarray, i: int, j: int) -> float:
    inner = np.prod(np.maximum(np.minimum(high[i], high[j]) - np.maximum(low[i], low[j]), 0))
    areas = np.prod(high[i] - low[i]) + np.prod(high[j] - low[j])
    return inner / (areas - inner) if areas > inner else 0.0


@row("DeformConv", kind=HOST)
def deform_conv(c: Call, x: Value, weight: Value, offset: Value, bias: Value = None, mask: Value = None) -> Value:
    """Each tap of the kernel reads at a place of its own, between elements; two axes of space."""
    kernel = weight.shape[2:]
    if len(kernel) != 2:
        raise c.refuse(f"axes of space, got {len(kernel)}, allowed 2")
    strides, dilations, pads = c.get("strides", (1, 1)), c.get("dilations", (1, 1)), c.get("pads", (0, 0, 0, 0))
    groups, own = c.get("group", 1), c.get("offset_group", 1)
    n, channels, (h, w) = x.shape[0], x.shape[1], offset.shape[2:]
    taps = kernel[0] * kernel[1]
    offset = offset.reshape(n, own, taps, 2, h, w)
    shares = np.ones((n, own, taps, h, w), x.dtype) if mask is None else mask.reshape(n, own, taps, h, w)
    columns = np.zeros((n, channels, taps, h, w), np.float64)
    per = channels // own
    for t, (ky, kx) in enumerate(np.ndindex(*kernel)):
        for g in range(own):
            y = np.arange(h)[:, None] * strides[0] - pads[0] + ky * dilations[0] + offset[:, g, t, 0]
            z = np.arange(w)[None] * strides[1] - pads[1] + kx * dilations[1] + offset[:, g, t, 1]
            part = x[:, g * per : (g + 1) * per]
            sampled = _weighed(c, part, [y, z], range(0, 2), _linear_weight, "zeros", True)
            columns[:, g * per : (g + 1) * per, t] = sampled * shares[:, g, t][:, None]
    blocks = columns.reshape(n, groups, channels // groups, taps, h, w)
    weights = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], taps)
    result = np.einsum("ngcthw,gmct->ngmhw", blocks, weights).reshape(n, weight.shape[0], h, w)
    return (result + (bias[:, None, None] if bias is not None else 0)).astype(x.dtype)


@row("ImageDecoder", kind=HOST)
def image_decoder(c: Call, data: Value) -> Value:
    """By Pillow, where it is installed."""
    try:
        import io

        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise c.refuse("images are decoded by Pillow, got none, allowed an environment with it") from None
    kind = c.get("pixel_format", "RGB")
    try:
        pixels = np.asarray(Image.open(io.BytesIO(data.tobytes())).convert({"Grayscale": "L"}.get(kind, "RGB")))
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise c.refuse(f"an image, got {data.nbytes} bytes ({error}), allowed what Pillow reads") from None
    pixels = pixels[..., None] if kind == "Grayscale" else pixels
    return pixels[..., ::-1] if kind == "BGR" else pixels
