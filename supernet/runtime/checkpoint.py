"""Checkpoints: written whole or not at all, verified when read, loaded without executing anything.

A checkpoint is a plain ``torch.save`` archive whose comment holds the SHA-256 of everything before it (the CRCs of a
zip leave its own tables uncovered), so ``torch.load(file, weights_only=True)`` reads it without this module.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
from pathlib import Path
from pickle import UnpicklingError  # the name of an error: nothing here reads a pickle by itself
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from supernet.errors import UserError
from supernet.runtime.files import write_atomic

VERSION = 1
_LABEL = b"supernet sha256 "
_COMMENT_BYTES = len(_LABEL) + 64
_NAME = re.compile(r"step-(\d{8,})\.pt")
_log = logging.getLogger(__name__)


class Damaged(ValueError):
    """What is wrong with a file that is no whole checkpoint."""


def pack(state: dict[str, Any]) -> bytes:
    """The bytes of a checkpoint. Raises TypeError where the state holds what only a pickle could bring back."""
    buffer = io.BytesIO()
    torch.save({"version": VERSION, **state}, buffer)
    # Told now, at the first save, and not at the resume that needs it.
    buffer.seek(0)
    unsafe = get_unsafe_globals_in_checkpoint(buffer)
    if unsafe:
        raise TypeError(
            f"state holds {', '.join(unsafe)}; a part's state is tensors, numbers, strings, lists and dicts"
        )
    archive = buffer.getvalue()
    assert archive.endswith(b"\0\0"), "a zip archive ends with the length of its comment"
    body = archive[:-2] + _COMMENT_BYTES.to_bytes(2, "little") + _LABEL
    return body + hashlib.sha256(body).hexdigest().encode()


def verify(data: bytes) -> None:
    """Raise Damaged unless these are the bytes that :func:`pack` made."""
    if not data:
        raise Damaged("it is empty")
    body, digest = data[:-64], data[-64:]
    if not body.endswith(_LABEL):
        raise Damaged("it is cut off or no checkpoint of supernet")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise Damaged("its content differs from its digest")


def unpack(data: bytes) -> dict[str, Any]:
    """The state, on the CPU, with its ``version``. Raises Damaged."""
    verify(data)
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, ValueError, EOFError) as error:
        # Only a file made to deceive gets here; its reason has many lines of advice that do not apply.
        raise Damaged(f"it holds more than plain data ({type(error).__name__})") from error
    if not isinstance(state, dict) or not isinstance(state.get("version"), int):
        raise Damaged("it holds no version")
    return state


class Checkpoints:
    """The checkpoints of one run: ``step-00001234.pt``, numbered through all stages; the newest valid one counts.

    At least ``keep`` valid ones stay, so a file that rots on the disk costs one interval and not the run. One process
    writes at a time.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        assert keep >= 2, "with one checkpoint, a damaged file would be the end of the run"
        self.folder = folder
        self.keep = keep

    def save(self, state: dict[str, Any], step: int) -> Path:
        """Write the state after ``step``, then drop what is older than the ``keep`` newest valid ones.

        Raises UserError where the file cannot be written, or where a valid later one exists: a resume would take that.
        """
        path = self.folder / f"step-{step:08d}.pt"
        data = pack(state)
        for number, later in self._newest_first():
            if number > step and _is_valid(later):
                raise UserError(
                    f"{later} is from a later step than this run's {step}: go on from it with resume=auto, or choose "
                    "another run_dir"
                )
        write_atomic(path, data)
        self._retain(path)
        return path

    def load_newest(self) -> tuple[dict[str, Any], Path] | None:
        """The newest valid checkpoint's state (on the CPU) and file; None where there is no checkpoint.

        Damaged ones are named in a warning and passed over. Raises UserError where all are, and where the newest is
        of another version.
        """
        names = []
        for _, path in self._newest_first():
            try:
                state = unpack(path.read_bytes())
            except (Damaged, OSError) as error:
                _log.warning("checkpoint %s cannot be used, trying the one before: %s", path, error)
                names.append(path.name)
                continue
            if state["version"] != VERSION:
                raise UserError(
                    f"{path} is a checkpoint of version {state['version']} and this supernet reads version {VERSION}: "
                    "resume with the supernet that wrote it, or choose another run_dir"
                )
            return state, path
        if names:
            raise UserError(
                f"no checkpoint in {self.folder} is readable ({', '.join(names)} damaged): restore one, or remove the "
                "folder to start anew"
            )
        return None

    def _newest_first(self) -> list[tuple[int, Path]]:
        if not self.folder.is_dir():
            return []
        matches = ((_NAME.fullmatch(path.name), path) for path in self.folder.iterdir())
        return sorted(((int(match[1]), path) for match, path in matches if match), reverse=True)

    def _retain(self, newest: Path) -> None:
        """Delete what is not needed any more, damaged files and the remains of killed processes among it."""
        valid = 0
        for _, path in self._newest_first():
            if valid < self.keep and (path == newest or _is_valid(path)):
                valid += 1
            else:
                _remove(path)
        for leftover in self.folder.glob(".step-*.tmp"):
            _remove(leftover)


def _is_valid(path: Path) -> bool:
    try:
        verify(path.read_bytes())
    except (Damaged, OSError):
        return False
    return True


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:  # the new checkpoint stands: no reason to stop a run
        _log.warning("cannot remove %s: %s", path, error)
