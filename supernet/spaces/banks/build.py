"""Compiles ``passes.cpp`` for the machine it is to run on: some ten seconds, once; then it is in the user's cache."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
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
    "-fopenmp",
    "-ffp-contract=fast",
    "-fPIC",
    "-shared",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-w",
)
NAMES = ("c++", "g++", "clang++")
SECONDS = 120
"""After which a compiler is given up."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled passes; None, with one warning, where there is no compiler or it fails."""
    try:
        return _loaded(_built(_cache()))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: a user without a home
        reason = str(getattr(error, "stderr", None) or error).strip().split("\n")[0].rstrip(".")
        _log.warning(
            "engine=compiled: going on with engine=banked, which takes about twice the time: %s. Mend that, or choose "
            "engine=banked",
            reason,
        )
        return None


def _loaded(file: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(file))
    except OSError:  # damaged: it is built anew
        file.unlink(missing_ok=True)
        return ctypes.CDLL(str(_built(file.parent)))


def _built(folder: Path) -> Path:
    """The library's file. Who else builds it meanwhile builds the same, and the last one stays."""
    compiler = _compiler()
    file = folder / f"passes-{_key(compiler)}.so"
    if not file.exists():
        _log.warning("compiling %s for engine=compiled: some ten seconds, once for this machine", SOURCE.name)
        with tempfile.TemporaryDirectory(dir=folder) as own:
            made = Path(own) / file.name
            _compile(compiler, made)
            made.replace(file)
    return file


def _compile(compiler: str, made: Path) -> None:
    command = [compiler, *FLAGS, str(SOURCE), "-o", str(made)]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)


def _compiler() -> str:
    chosen = os.environ.get("CXX")
    found = next((path for name in ([chosen] if chosen else NAMES) if (path := shutil.which(name))), None)
    if found is None:
        names = f"CXX={chosen} is none" if chosen else ", ".join(NAMES)
        raise FileNotFoundError(f"there is no C++ compiler ({names})")
    return found


def _key(compiler: str) -> str:
    """Of what decides the code: the source, the flags, the compiler, and what the processor can do as the compiler sees
    it, since machines may share a home."""
    asked = [[compiler, "--version"], [compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull]]
    said = [subprocess.run(command, capture_output=True, timeout=SECONDS).stdout for command in asked]
    return hashlib.sha256(b"\0".join([SOURCE.read_bytes(), repr(FLAGS).encode(), *said])).hexdigest()[:24]


def _cache() -> Path:
    """A directory that nobody but the user writes into: what lies there is executed."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    folder = (base if base.is_absolute() else Path.home() / ".cache") / "supernet"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = folder.stat()
    if about.st_mode & 0o022 or (hasattr(os, "getuid") and about.st_uid != os.getuid()):
        raise PermissionError(f"{folder} can be written by others")
    return folder
