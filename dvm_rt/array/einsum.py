"""einsum and other products that are a matmul after transposes.

einsum contracts from left to right. A contraction of two arrays is: sums over what only one of them has, then transposes and
reshapes to (batch, rows, shared) x (batch, shared, columns), one matmul, and back. A repeated letter in one array is its
diagonal (a slice with a longer step of the flattened axes, which asks for sizes that are numbers)."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_letters

from dvm_rt.array.array import Array, asarray, is_several, record
from dvm_rt.array.functions import expand_dims, matmul, permute_dims, reshape
from dvm_rt.errors import GraphError, ShapeError
from dvm_rt.graph.shapes import axis_number, whole_number
from dvm_rt.graph.symbols import Size, product


def einsum(equation: str, /, *arrays: Array) -> Array:
    """Sums of products over named axes: einsum("bik,bkj->bij", x, y). Raises GraphError for an equation that is none."""
    operands = [a if isinstance(a, Array) else asarray(a) for a in arrays]
    terms, result = _parsed(equation, [a.ndim for a in operands])
    left, names = _simplified(operands[0], terms[0], {*result}.union(*terms[1:]))
    for i, (right, others) in enumerate(zip(operands[1:], terms[1:], strict=True), 2):
        wanted = {*result}.union(*terms[i:])
        left, names = _contracted(left, names, *_simplified(right, others, wanted.union(names)), wanted)
    left, names = _simplified(left, names, set(result))
    return _ordered(left, names, result)


def tensordot(x: Array, y: Array, /, *, axes: int | tuple[Sequence[int], Sequence[int]] = 2) -> Array:
    """Sum of products over the last axes of x and the first of y (a number of them), or over pairs of axes."""
    x, y = asarray(x), asarray(y)
    if (count := whole_number(axes)) is not None:
        ours, theirs = range(x.ndim - count, x.ndim), range(count)
    elif not isinstance(axes, (tuple, list)) or len(axes) != 2 or not all(map(is_several, axes)):
        raise ShapeError(f"array: tensordot: axes, got {axes!r}, allowed a number of them, or two sequences of them")
    else:
        ours = [axis_number("array: tensordot", a, x.ndim) for a in axes[0]]
        theirs = [axis_number("array: tensordot", a, y.ndim) for a in axes[1]]
    if len(ours) != len(theirs) or not 0 <= len(ours) <= min(x.ndim, y.ndim):
        raise ShapeError(f"array: tensordot: axes, got {axes}, allowed as many of both, at most {min(x.ndim, y.ndim)}")
    left, right = list(ascii_letters[: x.ndim]), list(ascii_letters[x.ndim : x.ndim + y.ndim])
    for a, b in zip(ours, theirs, strict=True):
        right[b] = left[a]
    kept = [n for n in left if n not in right] + [n for n in right if n not in left]
    return einsum(f"{''.join(left)},{''.join(right)}->{''.join(kept)}", x, y)


def outer(x: Array, y: Array, /) -> Array:
    """x[i] * y[j] for vectors x and y."""
    x, y = asarray(x), asarray(y)
    for a in (x, y):
        if a.ndim != 1:
            raise ShapeError(f"array: outer: rank, got {a.ndim}, allowed 1")
    return expand_dims(x, axis=1) * y


def vecdot(x: Array, y: Array, /, *, axis: int = -1) -> Array:
    """Sum of products along one axis, counted from the end; the others broadcast."""
    x, y = asarray(x), asarray(y)
    number = whole_number(axis)
    if number is None or not -min(x.ndim, y.ndim) <= number < 0:
        raise ShapeError(f"array: vecdot: axis, got {axis!r}, allowed {-min(x.ndim, y.ndim)} to -1")
    return (x * y).sum(number)


def _parsed(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """One string of letters for each array, and that of the result; `...` becomes letters that are not in use."""
    if not isinstance(equation, str):
        raise GraphError(f"array: einsum: equation, got {type(equation).__name__}, allowed a string such as 'ij,jk->ik'")
    text = equation.replace(" ", "")
    inputs, arrow, result = text.partition("->")
    terms = inputs.split(",")
    if len(terms) != len(ranks) or not ranks:
        raise GraphError(f"array: einsum: arrays, got {len(ranks)}, allowed {len(terms)} for {equation!r}")
    free = [c for c in ascii_letters if c not in text]
    lengths = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    lead = "".join(free[: max([n for t, n in zip(terms, lengths, strict=True) if "..." in t] or [0])])
    for i, (term, length) in enumerate(zip(terms, lengths, strict=True)):
        if length < 0 or (length and "..." not in term):
            raise GraphError(f"array: einsum: {term!r}, got an array of rank {ranks[i]}, allowed {len(term.replace('...', ''))}")
        terms[i] = term.replace("...", lead[len(lead) - length :], 1)
    letters = "".join(terms)
    if not arrow:
        result = lead + "".join(sorted(c for c in set(letters) - set(lead) if letters.count(c) == 1))
    result = result.replace("...", lead, 1)
    if not all(c in ascii_letters for c in letters + result) or not set(result) <= set(letters) or len(set(result)) < len(result):
        raise GraphError(
            f"array: einsum: equation, got {equation!r}, allowed letters; those of the result once, and from the arrays")
    return terms, result


def _simplified(x: Array, names: str, wanted: set[str]) -> tuple[Array, str]:
    """Diagonals taken, and summed over what nobody else names."""
    for name in sorted(set(names)):
        while names.count(name) > 1:
            x, names = _diagonal(x, names, name)
    gone = tuple(i for i, name in enumerate(names) if name not in wanted)
    return (x.sum(gone), "".join(n for n in names if n in wanted)) if gone else (x, names)


def _diagonal(x: Array, names: str, name: str) -> tuple[Array, str]:
    first = names.index(name)
    second = names.index(name, first + 1)
    size = x.shape[first]
    if not isinstance(size, int) or size != x.shape[second]:
        raise ShapeError(f"array: einsum: diagonal, got sizes {size} and {x.shape[second]}, allowed equal numbers")
    rest = [i for i in range(x.ndim) if i not in (first, second)]
    x = reshape(permute_dims(x, (first, second, *rest)), (size * size, *(x.shape[i] for i in rest)))
    return x[:: size + 1], name + "".join(names[i] for i in rest)


def _contracted(x: Array, left: str, y: Array, right: str, wanted: set[str]) -> tuple[Array, str]:
    """The product of two arrays, summed over the letters that both have and nobody wants."""
    both = [n for n in left if n in right]
    batch, shared = [n for n in both if n in wanted], [n for n in both if n not in wanted]
    rows, columns = [n for n in left if n not in right], [n for n in right if n not in left]
    sizes = dict(zip(left, x.shape, strict=True))
    for name, size in zip(right, y.shape, strict=True):
        if name not in sizes or _is_one(sizes[name]):
            sizes[name] = size
    if any(_is_one(a.shape[t.index(n)]) and not _is_one(sizes[n]) for a, t in ((x, left), (y, right)) for n in both):
        x, left, y, right = *_stretched(x, left, both, sizes), *_stretched(y, right, both, sizes)
    if not shared:  # nothing to sum: broadcasting does it
        a = _ordered(x, left, "".join(batch + rows))
        b = _ordered(y, right, "".join(batch + columns))
        shape = (*(sizes[n] for n in batch + rows), *(1 for _ in columns))
        b = reshape(b, (*(sizes[n] for n in batch), *(1 for _ in rows), *(sizes[n] for n in columns)))
        return reshape(a, shape) * b, "".join(batch + rows + columns)
    a, b = _ordered(x, left, "".join(batch + rows + shared)), _ordered(y, right, "".join(batch + shared + columns))
    lead = tuple(sizes[n] for n in batch)
    depth = _size(shared, sizes)
    a, b = reshape(a, (*lead, _size(rows, sizes), depth)), reshape(b, (*lead, depth, _size(columns, sizes)))
    return reshape(matmul(a, b), tuple(sizes[n] for n in batch + rows + columns)), "".join(batch + rows + columns)


def _stretched(x: Array, names: str, both: list[str], sizes: dict[str, Size]) -> tuple[Array, str]:
    shape = tuple(sizes[n] if n in both else size for n, size in zip(names, x.shape, strict=True))
    return record("broadcast_to", (x,), (shape,)), names


def _is_one(size: Size) -> bool:
    return isinstance(size, int) and size == 1


def _size(names: list[str], sizes: dict[str, Size]) -> Size:
    return product(sizes[n] for n in names)


def _ordered(x: Array, names: str, wanted: str) -> Array:
    return x if names == wanted else permute_dims(x, tuple(names.index(n) for n in wanted))


__all__ = ["einsum", "outer", "tensordot", "vecdot"]
