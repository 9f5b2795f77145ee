"""The command line, `dvm-rt`: one function a command, each importing what it needs."""

from __future__ import annotations

import signal
import sys

if sys.argv[1:2] == ["pool"]:  # a drain that comes while a pool starts waits until it can; by itself SIGUSR1 would kill
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})

import subprocess
import time
from collections.abc import Iterable, Iterator
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer

from dvm_rt import config
from dvm_rt.errors import DvmError, GraphError, UnsupportedOperatorError

if TYPE_CHECKING:
    from dvm_rt.onnx.conformance import Outcome

HELP = ("Runs ONNX models, looks into what dvm_rt makes (programs, traces), prints the manual of its instruction set, and "
        "starts pools of workers.")  # fmt: skip
SUITES = ("operators, subgraphs, models, requests, dynamic, onnx, limits, threads, memory, encode, pipeline, "
          "startup; none: all")  # fmt: skip
PEERS = "torch,torch-linear,inductor,inductor-dyn,onnxruntime,jax,numpy,numexpr,mindspore"
END_S = 10.0  # for a pool that was started or stopped to be there or gone
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=HELP)


class PoolAction(StrEnum):
    """What `dvm-rt pool` does."""

    START, LIST, DRAIN, STOP = "start", "list", "drain", "stop"


@app.command()
def pool(
    action: Annotated[PoolAction, typer.Argument(help="drain: what is there is still answered")] = PoolAction.START,
    connect: Annotated[str | None, typer.Option(help="where the scheduler listens: ipc:///path or tcp://127.0.0.1:port")] = None,
    encoders: Annotated[int, typer.Option(min=1, max=64, help="worker processes")] = 1,
    detach: Annotated[bool, typer.Option("--detach", help="start it in the background")] = False,
) -> None:
    """Start encoder workers for a listening runtime, and watch them; or list, drain or stop the pools of this machine.

    A pool waits for its scheduler, and ends with it. SIGTERM stops it, SIGUSR1 drains it."""
    from dvm_rt.encoder_workers.pool import Pool, end, pools
    from dvm_rt.transport import check_endpoint

    endpoint = None if connect is None else check_endpoint(connect)
    if action is PoolAction.START:
        if endpoint is None:
            raise DvmError("pool: start: --connect, got none, allowed where a scheduler listens")
        if detach:
            print(f"pool: {_detached(endpoint, encoders)} in the background")
        else:
            Pool(endpoint, encoders, lambda line: print(line, flush=True)).run()
        return
    running = pools(endpoint)
    for one in running:
        print(f"pool: {one.pid}: {one.encoders} workers for {one.endpoint}")
    if action is PoolAction.LIST:
        return
    if not running:
        place = f" for {endpoint}" if endpoint else ""
        raise DvmError(f"pool: {action}: pools, got none{place}, allowed those that `pool list` shows")
    drains = action is PoolAction.DRAIN
    left = end(running, signal.SIGUSR1 if drains else signal.SIGTERM, END_S + (config.number("drain_s") if drains else 0.0))
    if left:
        raise DvmError(f"pool: {action}: pools that are still there, got {[one.pid for one in left]}, allowed none")


def _detached(endpoint: str, encoders: int) -> int:
    """A pool in the background, which is listed; its process number."""
    from dvm_rt.encoder_workers.pool import pools

    command = [sys.executable, "-P", "-m", "dvm_rt", "pool", "--connect", endpoint, "--encoders", str(encoders)]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + END_S
    while all(one.pid != process.pid for one in pools()):
        if process.poll() is not None or time.monotonic() > deadline:
            text = f"pool: start: process {process.pid}, got none that is listed, allowed one; without --detach it says why"
            raise DvmError(text)
        time.sleep(0.02)
    return process.pid


@app.command()
def isa(
    markdown: Annotated[Path | None, typer.Option(help="write the manual here: docs/isa.md in a source checkout")] = None,
) -> None:
    """Print the manual of the instruction set: every instruction with its operands, dtypes, meaning, accuracy and cost."""
    from dvm_rt.isa.manual import manual

    if markdown is None:
        print(manual())
    else:
        markdown.write_text(manual())


@app.command()
def das(file: Annotated[Path, typer.Argument(help="the bytes of one program")]) -> None:
    """Print the listing of a program, as `dvm_rt.das(function, *args)` does for what a call runs."""
    from dvm_rt.isa.assembler import disassemble

    print(disassemble(file.read_bytes()))


@app.command()
def trace(
    file: Annotated[Path, typer.Argument(help="what Runtime.trace() wrote")],
    gaps: Annotated[int, typer.Option(min=0, max=100, help="longest idle stretches to list, per track")] = 3,
) -> None:
    """Summarise a trace: spans and time per track, idle time, the longest gaps."""
    from rich.console import Console
    from rich.table import Table

    from dvm_rt.trace import summarise

    table = Table(title=str(file), title_justify="left")
    for column in ("track", "span", "count", "total ms", "mean us"):
        table.add_column(column, justify="left" if column in ("track", "span") else "right")
    for track in summarise(file, gaps):
        for kind, count in track.spans.items():
            busy_us = track.busy_us[kind]
            table.add_row(track.name, kind, str(count), f"{busy_us / 1e3:.2f}", f"{busy_us / count:.2f}")
        longest = ", ".join(f"{length:.0f} us at {start / 1e3:.2f} ms" for length, start in track.gaps)
        table.add_row(track.name, f"(idle; longest: {longest})" if longest else "(idle)", "", f"{track.idle_us / 1e3:.2f}", "")
        table.add_section()
    Console().print(table)


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="an ONNX model")],
    input: Annotated[list[str], typer.Option(help="name=file.npy; inputs that are not given are random")] = [],  # noqa: B006
    dim: Annotated[list[str],
                   typer.Option(help="name=4 or name=4,8: sizes of symbolic dimensions; several are swept")] = [],  # noqa: B006
    profile: Annotated[bool, typer.Option(help="say where the nodes ran, and the runtime's counters")] = False,
    trace: Annotated[Path | None, typer.Option(help="write a Perfetto trace")] = None,
    compare: Annotated[str | None, typer.Option(help="run beside another engine: onnxruntime")] = None,
    encoders: Annotated[int, typer.Option(min=0, max=8, help="worker processes; 0: everything in this process")] = 0,
) -> None:
    """Run an ONNX model over one or several shapes. Exit code 2: results differ from those of the engine that it is
    compared with."""
    if not _onnx("command").run(file, input, dim, profile, trace, compare, encoders):
        raise typer.Exit(2)


@app.command()
def conformance(
    suite: Annotated[str, typer.Argument(help="onnx")],
    pattern: Annotated[str, typer.Option(help="only cases with this in their names")] = "",
    passing: Annotated[Path | None, typer.Option(help="write the names of the cases that pass")] = None,
    table: Annotated[Path | None, typer.Option(help="write the table of operators (docs/onnx.md)")] = None,
) -> None:
    """Run a suite that others wrote; prints what passed by group, then what did not."""
    from dvm_rt.runtime import Runtime

    if suite != "onnx":
        raise typer.BadParameter(f"got {suite}, allowed onnx")
    module = _onnx("conformance")
    with Runtime(inline=True):
        outcomes = list(_told(module.run(pattern=pattern)))
    print(module.summary(outcomes))
    for outcome in outcomes:
        if outcome.result != module.PASSED:
            print(f"{outcome.name}: {outcome.result}: {outcome.said}")
    if passing is not None:
        passing.write_text("".join(f"{o.name}\n" for o in outcomes if o.result == module.PASSED))
    if table is not None:
        table.write_text(module.table(outcomes))


def _told(outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    """The same, with progress on a terminal: all of them take a minute or two."""
    shown = sys.stderr.isatty()
    for number, outcome in enumerate(outcomes, 1):
        if shown:
            print(f"\r\033[K{number} cases, {outcome.name}", end="", file=sys.stderr, flush=True)
        yield outcome
    if shown:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def _onnx(module: str) -> ModuleType:
    """A module of the ONNX frontend, or an error that says what to install."""
    try:
        return import_module(f"dvm_rt.onnx.{module}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("dvm_rt"):
            raise
        raise UnsupportedOperatorError(
            f"onnx: import of {error.name}, got none that is installed, "
            "allowed environments with it: pip install 'dvm-rt[onnx]'"
        ) from None


@app.command()
def bench(
    suites: Annotated[list[str] | None, typer.Argument(help=SUITES)] = None,
    peers: Annotated[str, typer.Option(help="engines to compare with")] = PEERS,
    only: Annotated[str, typer.Option(help="only cases whose name contains this")] = "",
    threads: Annotated[int, typer.Option(min=1, max=64, help="threads of every engine; 1 pins to one CPU")] = 1,
    all_shapes: Annotated[bool, typer.Option(help="give slow compilers all 50 new shapes, not a few")] = False,
    json: Annotated[Path | None, typer.Option(help="write rows here, and go on from those that are there")] = None,
    html: Annotated[Path | None, typer.Option(help="write one page here")] = None,
    markdown: Annotated[Path | None, typer.Option(help="write the results page here")] = None,
) -> None:
    """Compare with other engines in one run (from a source checkout: the code is in benchmarks/)."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    try:
        from benchmarks import bench as command
    except ImportError as error:
        raise GraphError(f"bench: benchmarks/: import, got {error}, allowed a source checkout of dvm_rt") from None
    command.main(suites or [], peers, only, threads, all_shapes, {"json": json, "html": html, "markdown": markdown})


def main() -> None:
    """Runs a command; what the package finds wrong is one line on stderr and exit code 1."""
    try:
        app()
    except DvmError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except OSError as error:
        where = f"{sys.argv[1]}: {error.filename}: file, got {error.strerror}, allowed one that can be opened"
        sys.exit(f"{type(error).__name__}: {error if error.filename is None else where}")


if __name__ == "__main__":
    main()
