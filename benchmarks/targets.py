"""What the benchmark is held against: one target a line, its figures computed from the rows of a run.

A target has parts (a row each, or a level each) and is met when all of them are; parts whose rows a run lacks are
left out, a target without any is said to be not measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from benchmarks.measure import Row

SHOWN = 4  # parts that are written out one by one


@dataclass(frozen=True, slots=True)
class Part:
    """`value` against `bound`: at least it, or, with `most`, at most."""

    name: str
    value: float
    bound: float
    most: bool = False
    strict: bool = False

    @property
    def met(self) -> bool:
        if self.value == self.bound:
            return not self.strict
        return (self.value < self.bound) == self.most


@dataclass(frozen=True, slots=True)
class Target:
    what: str
    wanted: str
    unit: str
    parts: tuple[Part, ...]
    why: str = ""  # what is known of the reason where it is missed

    @property
    def met(self) -> bool | None:
        return all(p.met for p in self.parts) if self.parts else None

    @property
    def figure(self) -> str:
        """The parts, or the worst of many."""
        if not self.parts:
            return "not measured"
        if len(self.parts) <= SHOWN:
            return ", ".join(
                f"{p.name} {_number(p.value)}{self.unit}" if p.name else f"{_number(p.value)}{self.unit}" for p in self.parts
            )
        worst = min(self.parts, key=lambda p: (-1 if p.most else 1) * p.value / p.bound)
        return f"{sum(p.met for p in self.parts)} of {len(self.parts)}; worst {_number(worst.value)}{self.unit} ({worst.name})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


COLD = ("one kernel takes .9 us in a loop of its own, 2 to 3 after other work has been through the caches, and 7 to 10 the first "
        "time after seconds of other engines' work, when 480 cache lines of code and 280 of data come from memory, which takes a "
        "third of that although all are asked for at once; and an empty loop of this virtual CPU is interrupted some 350 times a "
        "second, mostly for 20 to 60 us")  # fmt: skip
PRODUCT = "; a product alone takes Inductor 0.1 s instead of about 1"
FIRST = ("of 19 ms 4.6 copy 19 MB of weights and 4 pack them, half of each for pages that the system zeroes first; the user's "
         "function makes 132 operators in 2, the graph takes 1, fusing and writing the plan 6: 55,000 calls of Python of which no "
         "function has 3 %; encoding, loading and the run itself 1. With planning for nothing 9.7 would be left")  # fmt: skip
WORDS = ("where the loop by hand is straight code, each word of a pass without a loop of its own (the chain) is dispatched once "
         "for 128 floats, in registers where two held strips are enough; a maximum that keeps NaN and signed zeros takes two to "
         "three instructions, a * b + c is rounded twice, a NaN is made canonical, a launch costs 40 ns, and row sums are added "
         "in one order on every machine")  # fmt: skip
SAME_BYTES = "whoever fuses moves the same bytes, and beyond L2 those take the time: we are at the triad's bandwidth, or near it"
ONE_READ = "one row or two read all weights once, as everybody does: ours from memory at 90 to 97 % of a read of the same bytes"
SHARED = "L3 and memory are shared with other guests of the machine: the same loop differs by 15 % from run to run"
TOGETHER = "both threads read the same L3 and memory, which one of them nearly fills"
PER_ROW = "the reason stands beside the row below"
BY_SIZE = ("64 rows by weights of 256 columns are full tiles at 90 % of what multiply-adds in registers sustain, and one query by "
           "2,048 keys is one read of K and V: where a peer does the same, there is no 1.3x to be had")  # fmt: skip
FULL_SIZE = "most of a request are matrix products of full size, in which MKL is as fast"
LEVELS = {"operators": "operator", "subgraphs": "subgraph", "models": "model"}
FUSED = ("chain of 8", "gelu", "swiglu", "lstm cell")
ROW_KERNELS = ("softmax", "layer norm", "rms norm", "gelu", "cross entropy", "rotary")
SIZES = {"32x64": 0.5, "512x768": 0.65, "4096x4096": 0.65}
HAND_FUSED = 1.15
BLOCKS = ("mlp 256-1024", "attention, 8 heads", "encoder layer")
CONSTANT = "matmul, constant"


def targets(rows: list[Row]) -> list[Target]:
    """All of them, in order."""
    timed = [r for r in rows if r.metric == "time" and r.dvm]

    def of(suite: str, *cases: str) -> list[Row]:
        return [r for r in timed if r.suite == suite and (not cases or r.case.startswith(cases))]

    def ahead(what: str, found: Iterable[Row]) -> Target:
        return Target(
            what, "ahead of the best peer on every row", "x", tuple(_parts(found, lambda r: r.ratio, 1.0, strict=True)), PER_ROW
        )

    fused = [r for case in FUSED for r in timed if r.case == case and r.shape in SIZES and r.best]
    by_hand = [r for case in FUSED for r in rows if r.case == case and r.metric == "kernel" and r.shape in SIZES]
    constant = of("operators", CONSTANT)
    small = [r for r in constant if _rows_of(r) <= 64]
    limits = [r for r in of("limits") if r.limit]
    stored = [r for r in of("limits") if "bfloat16" in r.case and "M = 1," in r.shape]
    plain = [r for r in limits if "weights" in r.case and "bfloat16" not in r.case]
    return [
        *(_compile(rows, suite, level, metric) for suite, level in LEVELS.items() for metric in ("p98", "max")),
        Target("cold start of the 6-layer encoder, against Inductor", ">= 500x faster", "x",
               tuple(_parts((r for r in rows if r.metric == "cold start"), lambda r: r.over("inductor"), 500,
                            name=lambda r: "")), FIRST),
        Target("chain of 8, gelu, swiglu, lstm cell, of the best peer's time", "<= 0.5x small, <= 0.65x middle and large", "x",
               tuple(Part(f"{r.case} {r.shape}", 1 / r.ratio, SIZES[r.shape], most=True) for r in fused), SAME_BYTES),
        Target("the same, of a kernel fused by hand", f"<= {HAND_FUSED}x", "x",
               tuple(Part(f"{r.case} {r.shape}", 1 / r.over("fused C"), HAND_FUSED, most=True) for r in by_hand), WORDS),
        Target("chains without division, of a triad's bandwidth", ">= 90 %", " %",
               tuple(_parts((r for r in limits if "division" in r.case), _share, 90)), SHARED),
        ahead("softmax, layer norm, rms norm, gelu, cross entropy, rotary", [r for r in timed if r.case in ROW_KERNELS]),
        Target("matmul, M >= 128, constant weights, against MKL", ">= 0.97x", "x",
               tuple(_parts((r for r in constant if _rows_of(r) >= 128), _mkl, 0.97))),
        Target("matmul, M <= 64, constant weights, against F.linear", ">= 1.2x", "x",
               tuple(_parts(small, lambda r: r.over("torch-linear"), 1.2)), ONE_READ),
        Target("matmul, M <= 64, constant weights, against torch.mm", ">= 0.97x", "x",
               tuple(_parts(small, lambda r: r.over("torch"), 0.97))),
        Target("M = 1, 2 with weights beyond L2, of a read of the same bytes", ">= 95 %", " %", tuple(_parts(plain, _share, 95)),
               SHARED),
        Target("matmul, both per call, against torch.mm (stretch)", ">= 0.95x", "x",
               tuple(_parts(of("operators", "matmul, both per call"), lambda r: r.over("torch"), 0.95))),
        Target("weights stored in bfloat16, M = 1, against our float32", ">= 1.5x", "x",
               tuple(_parts(stored, lambda r: r.over("our float32"), 1.5)), SHARED),
        ahead("attention", of("subgraphs", "attention")),
        ahead("MLP and encoder layer", of("subgraphs", "mlp", "encoder layer")),
        Target("MLP, attention, encoder layer, the small half", ">= 1.3x of the best peer", "x",
               tuple(_parts((r for case in BLOCKS for r in _small_half(of("subgraphs", case))), lambda r: r.ratio, 1.3)),
               BY_SIZE),
        ahead("models", of("models")),
        *_requests([r for r in rows if r.metric == "mean of a request"]),
        Target("per-call floor (64 elements, one fused function)", "<= 2 us", " us",
               tuple(Part("", r.dvm, 2.0, most=True) for r in timed if (r.case, r.shape) == ("chain of 8", "1x64"))),
        Target("peak tensor memory of the 6-layer encoder over a stream of shapes", "below eager's", "x",
               tuple(Part("", r.dvm / r.best[1], 1.0, most=True, strict=True) for r in rows if r.suite == "memory"
                     and r.best and r.case.startswith("6-layer"))),
        Target("program cache", "<= 16 MiB", " MiB", tuple(Part(r.case, r.dvm, 16.0, most=True) for r in rows
                                                           if r.suite == "memory" and r.shape == "program cache")),
        Target("two threads against one", ">= 1.8x", "x",
               tuple(_parts((r for r in rows if r.suite == "threads"), lambda r: r.over("our 1 thread"), 1.8)), TOGETHER),
    ]  # fmt: skip


def _parts(
    rows: Iterable[Row],
    value: Callable[[Row], float | None],
    bound: float,
    strict: bool = False,
    name: Callable[[Row], str] | None = None,
) -> Iterator[Part]:
    for row in rows:
        if (found := value(row)) is not None:
            yield Part(name(row) if name else f"{row.case} {row.shape}", found, bound, strict=strict)


def _compile(rows: list[Row], suite: str, level: str, metric: str) -> Target:
    found = [r for r in rows if r.suite == suite and r.metric == f"compile {metric}"]
    parts = _parts(found, lambda r: r.over("inductor"), 100_000, name=lambda r: r.case)
    why = COLD + PRODUCT if level == LEVELS["operators"] else COLD
    return Target(
        f"compile time of a new shape, {metric}, {level}s, against Inductor", ">= 100,000x faster", "x", tuple(parts), why
    )


def _requests(rows: list[Row]) -> Iterator[Target]:
    what = "200 requests, all shapes different, compilation included"
    yield Target(
        f"{what}, of the best peer", ">= 1.3x", "x", tuple(_parts(rows, lambda r: r.ratio, 1.3, name=lambda r: "")), FULL_SIZE
    )
    for peer in ("inductor", "inductor-dyn"):
        yield Target(
            f"{what}, of {peer}", ">= 10x", "x", tuple(_parts(rows, lambda r, peer=peer: r.over(peer), 10, name=lambda r: ""))
        )


def _share(row: Row) -> float:
    return 100 * row.limit / row.dvm


def _mkl(row: Row) -> float | None:
    """The faster of PyTorch's two ways into MKL."""
    return min((value for name in ("torch", "torch-linear") if (value := row.over(name))), default=None)


def _rows_of(row: Row) -> int:
    return int(row.shape.split("x")[0])


def _small_half(rows: list[Row]) -> list[Row]:
    """By the time of the best peer."""
    return sorted((r for r in rows if r.best), key=lambda r: r.best[1])[: len(rows) // 2]
