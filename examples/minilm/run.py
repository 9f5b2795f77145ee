"""One run of the example: files, runtime, job, check, report."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import dvm_rt as dvm
from minilm import fetch, job, report, tokens, weights
from minilm.chaos import Killer
from minilm.model import Encoder
from minilm.reference import Reference


def run(
    console: Console,
    file: Path,
    limit: int | None,
    inline: bool,
    encoders: int,
    encode: str,
    trace: Path,
    kill_randomly: bool,
) -> bool:
    """The whole of it; True if the check against the reference held."""
    sentences = tokens.read_sentences(file, limit)
    if not trace.parent.is_dir() or trace.is_dir():
        raise dvm.DvmError(f"minilm: --trace: got {trace}, allowed a file in a folder that is there")
    cache = fetch.cache_directory()
    directory = fetch.find(cache)
    if directory is None:
        console.print(f"Downloading the model once, 80 MB, into {cache} ...", highlight=False)
        directory = fetch.fetch(cache)
    config, tensors = weights.load(directory)
    ids = tokens.tokenize(tokens.load_tokenizer(directory), sentences)
    report.input_table(console, file, sentences, ids)

    with _progress(console, ids) as advance:
        with dvm.Runtime(inline=True) if inline else dvm.Runtime(encoders=encoders, encode=encode) as runtime:
            with Killer(runtime) if kill_randomly else contextlib.nullcontext() as killer:
                began = time.perf_counter()
                encoded = job.encode(Encoder(config, tensors), ids, advance, dvm.stats)
                took_s = time.perf_counter() - began
            runtime.trace(trace)
        found = job.check(encoded, Reference(config, tensors), ids, advance)

    report.neighbours(console, sentences, encoded.plain)
    report.latencies(console, encoded)
    report.runtime(console, encoded, took_s, inline, killer)
    report.checks(console, encoded, found, config.layers)
    console.print(f"trace   {trace.resolve()}", highlight=False, soft_wrap=True)
    console.print(f"digest  {encoded.digest()}", highlight=False)
    return not found.problems()


@contextlib.contextmanager
def _progress(console: Console, ids: list[np.ndarray]) -> Iterator[job.Advance]:
    """A bar a step; `advance(step, sentences)` moves it."""
    columns = (TextColumn("{task.description:18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    totals = dict.fromkeys(job.STEPS, len(ids)) | {job.STEPS[1]: len(job.first_seen(ids))}
    with Progress(*columns, console=console) as progress:
        bars = {step: progress.add_task(step, total=totals[step], start=False) for step in job.STEPS}

        def advance(step: str, sentences: int) -> None:
            progress.start_task(bars[step])
            progress.advance(bars[step], sentences)

        yield advance
