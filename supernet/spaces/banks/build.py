"""Compiles ``passes.cpp`` for the machine it is to run on: some ten seconds, once; then it is in the user's cache."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

_log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("passes.cpp")
FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-ffp-contract=fast",
    "-fPIC",
    "-shared",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-w",
)
SECONDS = 300
"""After which a compiler is given up."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled passes; None, with one warning, where there is no compiler or it fails."""
    try:
        return _loaded(_built(_cache()))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: a user without a home
        reason = str(getattr(error, "stderr", None) or error).strip().split("\n")[0].rstrip(".")
        _log.warning(
            "engine=compiled: going on with engine=banked, which takes about twice the time: %s. Install a C++ "
            "compiler, or choose engine=banked",
            reason,
        )
        return None


def _loaded(file: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(file))
    except OSError:  # damaged: it is built anew
        file.unlink()
        return ctypes.CDLL(str(_built(file.parent)))


def _built(folder: Path) -> Path:
    """The library's file. Who else builds it meanwhile builds the same, and the last one stays."""
    compiler = _compiler()
    file = folder / f"passes-{_key(compiler)}.so"
    if not file.exists():
        _log.warning("compiling %s for engine=compiled: some ten seconds, once for this machine", SOURCE.name)
        with tempfile.TemporaryDirectory(dir=folder) as own:
            made = Path(own) / file.name
            try:
                _compile(compiler, made, "-fopenmp")
            except subprocess.CalledProcessError:  # a compiler without OpenMP: one thread
                _compile(compiler, made)
            made.replace(file)
    return file


def _compile(compiler: str, made: Path, *more: str) -> None:
    command = [compiler, *FLAGS, *more, str(SOURCE), "-o", str(made)]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)


def _compiler() -> str:
    names = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        raise FileNotFoundError("there is no C++ compiler (c++, g++, clang++ or $CXX)")
    return found


def _key(compiler: str) -> str:
    """Of what decides the code: the source, the flags, the compiler, and the processor, since a cache may be shared."""
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=SECONDS).stdout
    processor = Path("/proc/cpuinfo")
    features = ""
    if processor.exists():
        lines = processor.read_text().splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    what = (SOURCE.read_bytes(), repr(FLAGS).encode(), version, repr(platform.uname()[4:]).encode(), features.encode())
    return hashlib.sha256(b"\0".join(what)).hexdigest()[:24]


def _cache() -> Path:
    """A directory of the user's own."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "supernet"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} is not the user's own")
    return folder
