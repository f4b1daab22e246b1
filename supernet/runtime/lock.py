"""One process at a time in a run directory, by a lock that the kernel releases when its owner dies, however it dies."""

from __future__ import annotations

import errno
import fcntl
import functools
import json
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from supernet.errors import InUse, UserError
from supernet.schema import Config

FILE = ".lock"

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
_READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}
_held: set[int] = set()


def _close_inherited() -> None:
    """In a forked helper: its copy of the file would hold the lock for as long as it outlives the owner."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_close_inherited)


def one_at_a_time(run: Callable[[Config, Path], Any]) -> Callable[..., Any]:
    """Hold the lock of the run directory, given or ``config.run_dir``, while ``run(config, run_dir)`` is at work."""

    @functools.wraps(run)
    def locked(config: Config, run_dir: Path | None = None) -> Any:
        directory = run_dir or Path(config.run_dir)
        with RunLock(directory):
            return run(config, directory)

    return locked


class RunLock:
    """Within this context, no other process is within it for the same directory, on this host or, where the file system
    carries ``flock`` over the network (NFS and most cluster file systems), on another.

    The file ``.lock`` says who holds the lock (pid and host); it is removed at the end. One that a killed process has
    left is locked by nobody and taken over. Raises UserError where somebody else holds it. On a file system without
    locks a warning says so, and the run goes on without; in a directory that cannot be written, there is nothing to
    guard.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._handle: int | None = None
        self._process = os.getpid()

    def __enter__(self) -> RunLock:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            while self._handle is None:
                self._handle = self._take()
        except OSError as error:
            if error.errno in _NO_LOCKS:
                logging.getLogger(__name__).warning(
                    "%s is on a file system without locks: see to it that no other process uses it", self.directory
                )
            elif error.errno not in _READ_ONLY:
                raise UserError(
                    f"cannot lock {self.directory} ({error.strerror}): choose a run_dir that can be written"
                ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is None or os.getpid() != self._process:
            return
        # Removed while it is held: whoever waits at the old file sees below that it has lost its name.
        (self.directory / FILE).unlink(missing_ok=True)
        _held.discard(self._handle)
        os.close(self._handle)
        self._handle = None

    def _take(self) -> int | None:
        """The handle of the locked file; None where the file was removed in between, so that there is a new one."""
        path = self.directory / FILE
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(handle).st_nlink == 0:
                os.close(handle)
                return None
            os.ftruncate(handle, 0)
            os.write(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        except BlockingIOError as error:
            owner = _owner(handle)
            os.close(handle)
            raise InUse(
                f"{self.directory} is in use by {owner}: wait until that has ended, end it, or choose another run_dir"
            ) from error
        except OSError:
            os.close(handle)
            raise
        _held.add(handle)
        return handle


def _owner(handle: int) -> str:
    try:
        owner = json.loads(os.pread(handle, 1000, 0))
        return f"process {int(owner['pid'])} on {str(owner['host'])[:100]!r}"
    except (ValueError, KeyError, TypeError):  # it has just begun, and not said yet who it is
        return "another process"
