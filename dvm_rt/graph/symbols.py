"""Symbolic dimensions: integers that are known only when a function is called.

A dimension is a plain int where it is known, else a `Dim`: a polynomial with integer coefficients over atoms, in one
canonical form, so that equal dimensions are equal structures. An atom is a symbol (its number) or an opaque operation
(floordiv, mod, min, max) on two dimensions. Rules:

- every symbol is the size of one dimension of one parameter: it is >= 0, and never 1 (a size of 1 is the constant 1,
  part of a function's signature); symbols from DERIVED on stand for such a size divided by a number;
- everything structural works on `key`, plain nested tuples; the comparison operators are for the user's Python: where the
  answer differs from call to call, `Decisions` give the one of this call and note it, else they raise UndecidedError;
- `Facts` hold what operators have demanded of the symbols: solved equations (substituted everywhere), and checks, the
  conditions that could not be solved.

Knows nothing of operators or graphs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from math import inf, prod
from operator import eq, ge, gt, is_not, le, lt

from dvm_rt.errors import GraphError, ShapeError

Atom = object  # int (a symbol) or (operation, key, key)
Key = object  # int, or ((monomial, coefficient), ...) with monomial = (atom, ...), sorted
OPERATIONS = ("floordiv", "mod", "min", "max")
DECISIONS_MAX = 64
DERIVED = 1 << 16  # numbers of symbols that facts introduce


class Dim:
    """A size that is not known yet. Immutable; arithmetic with ints and Dims gives an int wherever it can."""

    __slots__ = ("key",)

    def __init__(self, key: Key) -> None:
        self.key = key

    def __add__(self, other: Size) -> Size:
        if other.__class__ is Dim:
            return _made(_add(self.key, other.key))
        if other.__class__ is int and other == 0:
            return self
        return _made(_add(self.key, int(other))) if isinstance(other, int) else NotImplemented

    def __sub__(self, other: Size) -> Size:
        return _made(_add(self.key, _scale(_key(other), -1))) if _is_size(other) else NotImplemented

    def __rsub__(self, other: Size) -> Size:
        return _made(_add(_key(other), _scale(self.key, -1))) if _is_size(other) else NotImplemented

    def __mul__(self, other: Size) -> Size:
        if other.__class__ is Dim:
            return Dim(_multiply(self.key, other.key))
        if other.__class__ is int and 0 <= other <= 1:
            return self if other else 0
        return _made(_scale(self.key, int(other))) if isinstance(other, int) else NotImplemented

    def __floordiv__(self, other: Size) -> Size:
        return floordiv(self, other) if _is_size(other) else NotImplemented

    def __rfloordiv__(self, other: Size) -> Size:
        return floordiv(other, self) if _is_size(other) else NotImplemented

    def __mod__(self, other: Size) -> Size:
        return mod(self, other) if _is_size(other) else NotImplemented

    def __rmod__(self, other: Size) -> Size:
        return mod(other, self) if _is_size(other) else NotImplemented

    def __neg__(self) -> Size:
        return self * -1

    __radd__, __rmul__ = __add__, __mul__

    def __eq__(self, other: object) -> bool:
        if not _is_size(other):
            return NotImplemented
        return self is other or _decide(self, other, "==", equal)

    def __ne__(self, other: object) -> bool:
        return NotImplemented if not _is_size(other) else not self == other

    def __lt__(self, other: Size) -> bool:
        return _decide(self, other, "<", lambda a, b: at_least(b, a + 1)) if _is_size(other) else NotImplemented

    def __le__(self, other: Size) -> bool:
        return _decide(self, other, "<=", lambda a, b: at_least(b, a)) if _is_size(other) else NotImplemented

    def __gt__(self, other: Size) -> bool:
        return _decide(self, other, ">", lambda a, b: at_least(a, b + 1)) if _is_size(other) else NotImplemented

    def __ge__(self, other: Size) -> bool:
        return _decide(self, other, ">=", lambda a, b: at_least(a, b)) if _is_size(other) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.key)

    def __bool__(self) -> bool:
        return self != 0

    def __index__(self) -> int:
        raise GraphError(
            f"symbols: {self}: its value differs from call to call, got a use as a number, allowed arithmetic and shapes; "
            "give the size as a Python argument of the function (then it is static), or loop outside of the function"
        )

    __int__ = __float__ = __index__

    def __repr__(self) -> str:
        return _text(self.key)


Size = int | Dim
Shape = tuple[Size, ...]


@lru_cache(16384)
def symbol(number: int) -> Dim:
    """The size with this number: one for each parameter dimension."""
    return Dim((((number,), 1),))


# ---- operations ---------------------------------------------------------------------------------------------------


def floordiv(a: Size, b: Size) -> Size:
    """a // b. Terms that b divides come out of the division, so (4*n + 3) // 4 is n and (n*m) // m is n."""
    quotient, rest = _split(_key(a), _key(b), "//")
    if isinstance(rest, int) and isinstance(b, int):
        return _made(_add(quotient, rest // b))
    if rest == 0:
        return _made(quotient)
    return _made(_add(quotient, _atom("floordiv", rest, _key(b))))


def mod(a: Size, b: Size) -> Size:
    """a % b, without the terms that b divides."""
    _, rest = _split(_key(a), _key(b), "%")
    if isinstance(rest, int) and isinstance(b, int):
        return rest % b
    return 0 if rest == 0 else _made(_atom("mod", rest, _key(b)))


def minimum(a: Size, b: Size) -> Size:
    """The smaller one; decided here where the bounds of the symbols allow it."""
    return _extreme("min", a, b, b, a)


def maximum(a: Size, b: Size) -> Size:
    """The larger one."""
    return _extreme("max", a, b, a, b)


def _extreme(operation: str, a: Size, b: Size, if_a_larger: Size, if_b_larger: Size) -> Size:
    if at_least(a, b):
        return if_a_larger
    if at_least(b, a):
        return if_b_larger
    first, second = sorted((_key(a), _key(b)), key=_order)
    return _made(_atom(operation, first, second))


def product(sizes: Iterable[Size]) -> Size:
    """The number of elements of a shape."""
    return prod(sizes, start=1)


def exact_quotient(a: Size, b: Size) -> Size | None:
    """a / b if b divides a for every value of the symbols, else None."""
    if isinstance(b, int) and b == 0:
        return None
    quotient, rest = _split(_key(a), _key(b), "//")
    return _made(quotient) if isinstance(rest, int) and rest == 0 else None


def cancelled(a: Size, b: Size) -> tuple[Size, Size]:
    """The fraction a / b without the symbols that both have as factors, where both are products."""
    x, y = _key(a), _key(b)
    if isinstance(x, int) or isinstance(y, int) or len(x) != 1 or len(y) != 1:
        return a, b
    (left, p), (right, q), kept = x[0], y[0], []
    right_left = list(right)
    for atom in left:
        if atom in right_left:
            right_left.remove(atom)
        else:
            kept.append(atom)
    return _made(_canonical({tuple(kept): p})), _made(_canonical({tuple(right_left): q}))


# ---- what is known ------------------------------------------------------------------------------------------------


def same(a: Size, b: Size) -> bool:
    """Equal for every value of the symbols. Never raises: what is not known to be equal is not the same."""
    if a.__class__ is Dim and b.__class__ is Dim:
        return a is b or a.key == b.key
    return a.__class__ is not Dim and b.__class__ is not Dim and a == b  # what is an int for every value is kept as an int


def same_shape(a: Shape, b: Shape) -> bool:
    """`same` for each dimension."""
    return len(a) == len(b) and all(map(same, a, b))


def equal(a: Size, b: Size) -> bool | None:
    """True or False where it holds for every value of the symbols, else None."""
    if same(a, b):
        return True
    low, high = bounds(a - b)
    if low > 0 or high < 0:
        return False
    one_apart = _add(_key(a), _scale(_key(b), -1))  # a bare symbol is never 1
    if not isinstance(one_apart, int) and len(one_apart) == 2 and abs(one_apart[0][1]) == 1 and one_apart[0][0] == ():
        monomial, coefficient = one_apart[1]
        if len(monomial) == 1 and isinstance(monomial[0], int) and coefficient == -one_apart[0][1]:
            return False if monomial[0] < DERIVED else None
    return None


def at_least(a: Size, b: Size) -> bool | None:
    """Whether a >= b: True or False where it holds for every value of the symbols, else None."""
    low, high = bounds(a - b)
    return True if low >= 0 else False if high < 0 else None


def bounds(size: Size) -> tuple[float, float]:
    """(smallest, largest) value that the size can have; infinities included."""
    return _bounds(_key(size))


@lru_cache(4096)
def _bounds(key: Key) -> tuple[float, float]:
    if isinstance(key, int):
        return key, key
    low = high = 0.0
    for monomial, coefficient in key:
        a, b = 1.0, 1.0
        for atom in monomial:
            corners = [_times(x, y) for x in (a, b) for y in _atom_bounds(atom)]
            a, b = min(corners), max(corners)
        a, b = sorted((_times(a, coefficient), _times(b, coefficient)))
        low, high = low + a, high + b
    return low, high


def _times(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b


def _atom_bounds(atom: Atom) -> tuple[float, float]:
    if isinstance(atom, int):
        return 0.0, inf
    operation, a, b = atom
    (a_low, a_high), (b_low, b_high) = _bounds(a), _bounds(b)
    if operation == "min":
        return min(a_low, b_low), min(a_high, b_high)
    if operation == "max":
        return max(a_low, b_low), max(a_high, b_high)
    if b_low < 0:
        return -inf, inf
    if operation == "mod":
        return 0.0, b_high - 1
    return (0.0 if a_low >= 0 else -inf), (a_high if a_high >= 0 else 0.0)


class UndecidedError(GraphError):
    """A comparison of sizes whose answer differs from call to call."""


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """A comparison of sizes, and its answer where Python code branched on it."""

    a: Size
    sign: str
    b: Size
    answer: bool

    def holds(self, values: Sequence[int]) -> bool:
        """Whether it is the answer for these values of the symbols, too."""
        return _COMPARISONS[self.sign](evaluate(self.a, values), evaluate(self.b, values)) == self.answer


@dataclass(slots=True, eq=False)
class Decisions:
    """Answers of comparisons for these values of the symbols; those `made` may be others for other values. Raises GraphError
    for more than DECISIONS_MAX: a loop over a size that is unrolled."""

    values: Sequence[int]
    made: list[Decision] = field(default_factory=list)

    def answer(self, a: Size, sign: str, b: Size) -> bool:
        known = next((d.answer for d in self.made if d.sign == sign and same(d.a, a) and same(d.b, b)), None)
        if known is not None:
            return known
        if len(self.made) == DECISIONS_MAX:
            raise GraphError(
                f"symbols: {a} {sign} {b}: branches on sizes in one function, got {DECISIONS_MAX + 1}, allowed {DECISIONS_MAX}; "
                "dvm.scan and dvm.while_loop count with sizes"
            )
        answer = _COMPARISONS[sign](evaluate(a, self.values), evaluate(b, self.values))
        self.made.append(Decision(a, sign, b, answer))
        return answer


_deciding = threading.local()


@contextmanager
def deciding(decisions: Decisions | None) -> Iterator[None]:
    """Meanwhile these answer comparisons whose answers differ from call to call; None: UndecidedError."""
    outer, _deciding.decisions = getattr(_deciding, "decisions", None), decisions
    try:
        yield
    finally:
        _deciding.decisions = outer


_COMPARISONS = {"==": eq, "<": lt, "<=": le, ">": gt, ">=": ge}


def _decide(a: Size, b: Size, sign: str, question: Callable[[Size, Size], bool | None]) -> bool:
    answer = question(a, b)
    if answer is not None:
        return answer
    decisions = getattr(_deciding, "decisions", None)
    if decisions is not None and max(symbols_of(a) | symbols_of(b)) < DERIVED:
        return decisions.answer(a, sign, b)
    raise UndecidedError(
        f"symbols: {a} {sign} {b}: the answer differs from call to call, got a branch on it while tracing, allowed "
        "comparisons that hold for every shape; give the size as a Python argument (then it is static), or branch outside "
        "of the function"
    )


# ---- facts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Check:
    """A condition on the symbols that no substitution expresses: `left relation right`, relation "==" or ">="."""

    left: Size
    relation: str
    right: Size
    where: str

    def holds(self, values: Sequence[int]) -> bool:
        """Whether it holds for these values of the symbols: not where it divides by a size that is 0."""
        try:
            left, right = evaluate(self.left, values), evaluate(self.right, values)
        except ZeroDivisionError:
            return False
        return left == right if self.relation == "==" else left >= right


@dataclass(slots=True)
class Facts:
    """What is known about the symbols of one graph. `substitutions[symbol]` never names a substituted symbol."""

    substitutions: dict[int, Size] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    _resolved: dict[Key, Size] = field(default_factory=dict)  # what `resolve` has found with these substitutions
    resolved_parts: dict[object, object] = field(default_factory=dict)  # the same of parts (graph/attributes.py)
    fitting: set[object] = field(default_factory=set)  # parts whose rows were found right with these substitutions
    _named_by: dict[int, set[int]] = field(default_factory=dict)  # open symbol -> the substituted ones whose values name it

    def __post_init__(self) -> None:
        for number, value in self.substitutions.items():
            self._note(number, value)

    def equate(self, a: Size, b: Size, where: str) -> Size:
        """Demands a == b and gives it in its canonical form. Raises ShapeError where that can never hold."""
        if a.__class__ is int and b.__class__ is int:
            if a != b:
                raise ShapeError(f"{where}: sizes differ, got {a} and {b}, allowed equal sizes")
            return a
        if a is b:
            return self.resolve(a)
        a, b = self.resolve(a), self.resolve(b)
        if same(a, b):
            return a
        if (plainly := _plainly(a, b) or _plainly(*cancelled(a, b)) or self._divides(a, b)) is not None:
            self._substitute(*plainly)
            self._settle()
            return self.resolve(a)
        if equal(a, b) is False:
            raise ShapeError(f"{where}: sizes differ for every input, got {a} and {b}, allowed equal sizes")
        if self._solve(a - b):
            self._settle()
        else:
            self._demand(Check(a, "==", b, where))
        return self.resolve(a)

    def demand_at_least(self, a: Size, b: Size, where: str) -> None:
        """Demands a >= b. Raises ShapeError where that can never hold."""
        a, b = self.resolve(a), self.resolve(b)
        if b.__class__ is int and (a >= b if a.__class__ is int else b == 0 and _symbol_number(a.key) is not None):
            return
        known = at_least(a, b)
        if known is False:
            raise ShapeError(f"{where}: out of range, got {a}, allowed at least {b}")
        if known is None:
            self._demand(Check(a, ">=", b, where))

    def resolve(self, size: Size) -> Size:
        """The size with everything substituted that is known."""
        if size.__class__ is int or not self.substitutions:
            return size
        if size.__class__ is not Dim:
            return int(size)
        key = size.key
        if len(key) == 1:
            monomial, coefficient = key[0]
            if coefficient == 1 and len(monomial) == 1 and monomial[0].__class__ is int:
                return self.substitutions.get(monomial[0], size)
        if self.substitutions.keys().isdisjoint(_symbols_of(key)):
            return size
        found = self._resolved.get(key)
        if found is None:
            found = self._resolved[key] = substitute(size, self.substitutions)
        return found

    def resolve_shape(self, shape: Shape) -> Shape:
        """`resolve` for each dimension; the shape itself where nothing is known."""
        if not self.substitutions:
            return shape
        found = [size if size.__class__ is int else self.resolve(size) for size in shape]
        return tuple(found) if any(map(is_not, found, shape)) else shape

    def resolved_checks(self) -> list[Check]:
        """The checks in terms of the symbols that are left, without those that became true."""
        resolved = (Check(self.resolve(c.left), c.relation, self.resolve(c.right), c.where) for c in self.checks)
        return [c for c in resolved if (equal if c.relation == "==" else at_least)(c.left, c.right) is not True]

    def _solve(self, zero: Dim) -> bool:
        """Finds a symbol that `zero == 0` determines, the youngest first, and substitutes it."""
        zero = _without_common_factor(zero)
        linear = [(m[0], c) for m, c in zero.key if len(m) == 1 and isinstance(m[0], int)]
        for number, coefficient in sorted(linear, reverse=True, key=lambda row: row[0]):
            rest = zero - coefficient * symbol(number)
            value = exact_quotient(-1 * rest, coefficient)
            if value is not None and number not in symbols_of(value):
                self._substitute(number, value)
                return True
        return self._solve_divisible(zero)

    def _settle(self) -> None:
        """After a substitution: checks that now can be solved become substitutions too, and who asked for what can no longer
        hold hears of it (ShapeError). Of those that it says nothing of neither can be."""
        if not self.checks:
            return
        checks, self.checks, known = self.checks, [], self.substitutions.keys()
        for check in checks:
            if known.isdisjoint(symbols_of(check.left) | symbols_of(check.right)):
                self._demand(check)
            elif check.relation == "==":
                self.equate(check.left, check.right, check.where)
            else:
                self.demand_at_least(check.left, check.right, check.where)

    def _solve_divisible(self, zero: Dim) -> bool:
        """Where `zero == 0` says that a number divides a symbol: the symbol becomes that number times a new one."""
        for _, symbol_key, divisor in _floordivs(zero.key):
            number = symbol_key[0][0][0]
            multiple = divisor * symbol(DERIVED + len(self.substitutions))
            if same(substitute(zero, {number: multiple}), 0):
                self._substitute(number, multiple)
                return True
        return False

    def _divides(self, a: Size, b: Size) -> tuple[int, Size] | None:
        """What `_solve_divisible` would find where a is n * (symbol // n), and b that symbol, or the other way round."""
        number, product = _symbol_number(_key(b)), a
        if number is None:
            number, product = _symbol_number(_key(a)), b
        if number is None or product.__class__ is not Dim or len(product.key) != 1:
            return None
        monomial, coefficient = product.key[0]
        if coefficient > 1 and monomial == (("floordiv", symbol(number).key, coefficient),):
            return number, coefficient * symbol(DERIVED + len(self.substitutions))
        return None

    def _substitute(self, number: int, value: Size) -> None:
        known = {number: value}
        self._resolved.clear()
        self.resolved_parts.clear()
        self.fitting.clear()
        for named in self._named_by.pop(number, ()):
            self.substitutions[named] = substitute(self.substitutions[named], known)
            self._note(named, value)
        self.substitutions[number] = value
        self._note(number, value)

    def _note(self, number: int, value: Size) -> None:
        for named in symbols_of(value):
            self._named_by.setdefault(named, set()).add(number)

    def _demand(self, check: Check) -> None:
        if not any(_says(known, check) for known in self.checks):
            self.checks.append(check)


def _says(known: Check, check: Check) -> bool:
    """Whether a check is one that is known, or that one with its sides exchanged."""
    a, b = (_key(known.left), _key(known.right)), (_key(check.left), _key(check.right))
    return known.relation == check.relation and (a == b or (a == b[::-1] and check.relation == "=="))


def _without_common_factor(zero: Dim) -> Dim:
    """a*x == a*y is taken to demand x == y: an a of 0 asks for nothing else anywhere. a*x == 0 stays as it is."""
    if len(zero.key) == 1:
        return zero
    common = list(zero.key[0][0])
    for monomial, _ in zero.key[1:]:
        rest = list(monomial)
        common = [atom for atom in common if atom in rest and (rest.remove(atom) or True)]
    if not common:
        return zero
    return _made(_canonical({_without(monomial, tuple(common)): c for monomial, c in zero.key}))


def _floordivs(key: Key) -> list[tuple]:
    """The atoms symbol // number of a size."""
    atoms = {atom for monomial, _ in key for atom in monomial if isinstance(atom, tuple)}
    return [a for a in sorted(atoms, key=repr) if a[0] == "floordiv" and isinstance(a[2], int) and _is_symbol(a[1])]


def _is_symbol(key: Key) -> bool:
    return _symbol_number(key) is not None


def _symbol_number(key: Key) -> int | None:
    """The number of the symbol that a size is, if it is nothing but one."""
    if key.__class__ is int or len(key) != 1:
        return None
    monomial, coefficient = key[0]
    return monomial[0] if coefficient == 1 and len(monomial) == 1 and monomial[0].__class__ is int else None


def _plainly(a: Size, b: Size) -> tuple[int, Size] | None:
    """What `Facts.equate` would find for two sizes of which one is a symbol, the other a symbol too (the younger one goes), a
    number, or a multiple of a symbol: (symbol, its value)."""
    number, other = _symbol_number(_key(a)), _symbol_number(_key(b))
    if number is not None and other is not None:
        return max(number, other), symbol(min(number, other))
    if number is None:
        number, b = other, a
    if number is None:
        return None
    if b.__class__ is int:
        return (number, b) if b > 1 or b == 0 else None
    (monomial, coefficient), *more = b.key
    plain = not more and coefficient > 1 and len(monomial) == 1 and monomial[0].__class__ is int and monomial[0] != number
    return (number, b) if plain else None


def symbols_of(size: Size) -> frozenset[int]:
    """The numbers of all symbols in a size."""
    return _symbols_of(_key(size))


@lru_cache(4096)
def _symbols_of(key: Key) -> frozenset[int]:
    if key.__class__ is int:
        return frozenset()
    if (number := _symbol_number(key)) is not None:
        return frozenset((number,))
    atoms = chain.from_iterable(monomial for monomial, _ in key)
    return frozenset().union(*((a,) if isinstance(a, int) else _symbols_of(a[1]) | _symbols_of(a[2]) for a in atoms))


def symbols_in_order(size: Dim) -> Iterator[int]:
    """The numbers of all symbols in a size, as they occur, some of them perhaps repeatedly."""
    for monomial, _ in size.key:
        for atom in monomial:
            if isinstance(atom, int):
                yield atom
            else:
                for part in atom[1:]:
                    yield from symbols_in_order(Dim(part)) if not isinstance(part, int) else ()


_OPERATIONS = {"floordiv": floordiv, "mod": mod, "min": minimum, "max": maximum}


def substitute(size: Size, values: dict[int, Size]) -> Size:
    """The size with symbols replaced; an int where nothing is left open."""
    key = _key(size)
    if key.__class__ is int:
        return key
    if (number := _symbol_number(key)) is not None:
        return values.get(number, size)
    total: Size = 0
    for monomial, coefficient in key:
        term: Size = coefficient
        for atom in monomial:
            term = term * _substitute_atom(atom, values)
        total = total + term
    return total


def _substitute_atom(atom: Atom, values: dict[int, Size]) -> Size:
    if isinstance(atom, int):
        return values.get(atom, symbol(atom))
    operation, a, b = atom
    a, b = substitute(_made(a), values), substitute(_made(b), values)
    return _OPERATIONS[operation](a, b)


def evaluate(size: Size, values: Sequence[int]) -> int:
    """The number that a size is for these values of the symbols."""
    if size.__class__ is int:
        return size
    result = _evaluated(_key(size), values)
    if not isinstance(result, int):
        raise GraphError(f"symbols: {size}: not determined, got {result}, allowed a number")
    return result


def _evaluated(key: Key, values: Sequence[int]) -> Size:
    if key.__class__ is int:
        return key
    total: Size = 0
    for monomial, term in key:
        for atom in monomial:
            if atom.__class__ is int:
                term *= values[atom]
            else:
                operation, a, b = atom
                term *= _OPERATIONS[operation](_evaluated(a, values), _evaluated(b, values))
        total += term
    return total


# ---- wire form ----------------------------------------------------------------------------------------------------


def to_wire(size: Size) -> Key:
    """An int or nested tuples of ints and strings."""
    return _key(size)


def from_wire(wire: object) -> Size:
    """The inverse of to_wire; lists (msgpack) count as tuples. Raises GraphError."""

    def key(w: object) -> Key:
        if isinstance(w, int) and not isinstance(w, bool):
            return w
        total: Key = 0
        for monomial, coefficient in w:
            term: Key = int(coefficient)
            for atom in monomial:
                term = _multiply(term, _key(symbol(atom)) if isinstance(atom, int) else opaque(*atom))
            total = _add(total, term)
        return total

    def opaque(operation: str, a: object, b: object) -> Key:
        if operation not in OPERATIONS:
            raise GraphError(f"symbols: wire: unknown operation, got {operation!r}, allowed {', '.join(OPERATIONS)}")
        return _atom(operation, key(a), key(b))

    try:
        return _made(key(wire))
    except (TypeError, ValueError) as error:
        raise GraphError(f"symbols: wire: not a dimension, got {wire!r}, allowed what to_wire gives") from error


# ---- canonical polynomials ----------------------------------------------------------------------------------------


def _is_size(value: object) -> bool:
    return value.__class__ is Dim or isinstance(value, int)


def _key(size: Size) -> Key:
    return size.key if size.__class__ is Dim else int(size)


def _made(key: Key) -> Size:
    return key if key.__class__ is int else Dim(key)


def _atom(operation: str, a: Key, b: Key) -> Key:
    return ((((operation, a, b),), 1),)


def _terms(key: Key) -> dict[tuple[Atom, ...], int]:
    return ({(): key} if key else {}) if isinstance(key, int) else dict(key)


def _canonical(terms: dict[tuple[Atom, ...], int]) -> Key:
    kept = [(monomial, coefficient) for monomial, coefficient in terms.items() if coefficient]
    if not kept:
        return 0
    if len(kept) == 1 and kept[0][0] == ():
        return kept[0][1]
    return tuple(sorted(kept, key=_term_order)) if len(kept) > 1 else tuple(kept)


def _term_order(term: tuple[tuple[Atom, ...], int]) -> tuple[int, str]:
    return len(term[0]), repr(term[0])


def _order(key: Key) -> tuple[bool, str]:
    return not isinstance(key, int), repr(key)


@lru_cache(16384)
def _add(a: Key, b: Key) -> Key:
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    terms = _terms(a)
    for monomial, coefficient in _terms(b).items():
        terms[monomial] = terms.get(monomial, 0) + coefficient
    return _canonical(terms)


@lru_cache(16384)
def _scale(key: Key, factor: int) -> Key:
    return key * factor if isinstance(key, int) else _canonical({m: c * factor for m, c in key})


@lru_cache(16384)
def _multiply(a: Key, b: Key) -> Key:
    if isinstance(b, int):
        return _scale(a, b)
    if isinstance(a, int):
        return _scale(b, a)
    if len(a) == len(b) == 1:
        ((left, x),), ((right, y),) = a, b
        return ((tuple(sorted(left + right, key=repr)), x * y),)
    terms: dict[tuple[Atom, ...], int] = {}
    for left, x in a:
        for right, y in b:
            monomial = tuple(sorted(left + right, key=repr))
            terms[monomial] = terms.get(monomial, 0) + x * y
    return _canonical(terms)


@lru_cache(4096)
def _split(a: Key, b: Key, sign: str) -> tuple[Key, Key]:
    """a = quotient * b + rest, where the rest holds the terms that b does not divide one by one (or all at once)."""
    if isinstance(b, int) and b == 0:
        raise ZeroDivisionError(f"symbols: {_text(a)} {sign} 0")
    if a == b:
        return 1, 0
    divisor = [((), b)] if isinstance(b, int) else list(b)
    if len(divisor) != 1:
        return _divide_sum(a, b)
    (atoms, factor), quotient, rest = divisor[0], {}, {}
    for monomial, coefficient in _terms(a).items():
        left = _without(monomial, atoms)
        if left is None or coefficient % factor:
            rest[monomial] = coefficient
        else:
            quotient[left] = coefficient // factor
    return _canonical(quotient), _canonical(rest)


def _divide_sum(a: Key, b: Key) -> tuple[Key, Key]:
    """Polynomial long division by a sum; the rest is all of a unless it comes out even."""
    quotient, rest, lead = 0, a, b[-1]
    for _ in range(8):
        if isinstance(rest, int):
            break
        monomial, coefficient = rest[-1]
        left = _without(monomial, lead[0])
        if left is None or coefficient % lead[1]:
            break
        step = _canonical({left: coefficient // lead[1]})
        quotient, rest = _add(quotient, step), _add(rest, _scale(_multiply(step, b), -1))
    return (quotient, 0) if rest == 0 else (0, a)


def _without(monomial: tuple[Atom, ...], atoms: tuple[Atom, ...]) -> tuple[Atom, ...] | None:
    left = list(monomial)
    for atom in atoms:
        if atom not in left:
            return None
        left.remove(atom)
    return tuple(left)


_SIGNS = {"floordiv": "//", "mod": "%"}


def _text(key: Key) -> str:
    if isinstance(key, int):
        return str(key)
    return " + ".join(_term_text(m, c) for m, c in reversed(key)).replace("+ -", "- ")


def _term_text(monomial: tuple[Atom, ...], coefficient: int) -> str:
    factors = [_atom_text(atom) for atom in monomial]
    return "*".join(([str(coefficient)] if coefficient != 1 or not factors else []) + factors)


def _atom_text(atom: Atom) -> str:
    if isinstance(atom, int):
        return f"s{atom}"
    operation, a, b = atom
    if operation in _SIGNS:
        return f"(({_text(a)}) {_SIGNS[operation]} ({_text(b)}))"
    return f"{operation}({_text(a)}, {_text(b)})"
