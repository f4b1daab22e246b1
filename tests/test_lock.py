"""One process at a time in a run directory, and no longer than it lives."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import TINY, tiny_config

import supernet
from supernet.errors import UserError
from supernet.runtime.lock import FILE, RunLock
from supernet.train import retrain, train

ROOT = Path(str(supernet.__file__)).parents[1]
OWNER = """
import os, sys
from pathlib import Path
from supernet.runtime.lock import RunLock
with RunLock(Path(sys.argv[1])):
    if os.fork() == 0:  # a helper that outlives its owner
        os.write(1, b"locked\\n")
        os.read(0, 1)
        os._exit(0)
    os.read(0, 1)
"""


def owner_of(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", OWNER, str(folder)]
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == b"locked\n"
    return process


def let_go(process: subprocess.Popen[bytes]) -> None:
    process.communicate(timeout=60)  # the end of its input ends the helper too


def test_a_second_process_is_refused_by_name_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    process = owner_of(tmp_path)
    try:
        said = rf"^{tmp_path} is in use by process {process.pid} on '{socket.gethostname()}': wait until .*$"
        for command in (train, retrain):
            with pytest.raises(UserError, match=said) as caught:
                command(tiny_config(f"run_dir={tmp_path}", "genotype=DARTS_V2"))
            assert "\n" not in str(caught.value) and caught.value.exit_code == 2
        assert [path.name for path in tmp_path.iterdir()] == [FILE], "the refused one has written nothing"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / FILE).exists()
        with RunLock(tmp_path):
            assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()
    finally:
        let_go(process)
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize("arguments", [[], ["-m"]], ids=["run", "multirun"])
def test_the_command_ends_with_2(arguments: list[str], tmp_path: Path) -> None:
    job = tmp_path / "debug_fast-experiment_darts_digits" if arguments else tmp_path
    with RunLock(job):
        command = [sys.executable, "-m", "supernet.train", *TINY[:2], *arguments, f"run_dir={tmp_path}"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    assert f"error: {job} is in use by process {os.getpid()} on" in done.stderr and "Traceback" not in done.stderr


def test_the_same_process_is_refused_too_and_the_end_makes_room(tmp_path: Path) -> None:
    with RunLock(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()}"), RunLock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"retrain\.batch"):  # a mistake that is found once the lock is taken
        train(tiny_config(f"run_dir={tmp_path}", "retrain.batch=97", "limit.batch=null"))
    assert list(tmp_path.iterdir()) == [], "the directory can be used again"


def test_who_waited_at_a_removed_file_takes_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = fcntl.flock, []

    def flock(handle: int, operation: int) -> None:
        if not calls:
            (tmp_path / FILE).unlink()  # its owner ended between our open and our lock
        calls.append(handle)
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with RunLock(tmp_path):
        assert len(calls) == 2
        with pytest.raises(UserError), RunLock(tmp_path):
            pass


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', "\udcff"])
def test_a_lock_that_does_not_say_whose_it_is(text: str, tmp_path: Path) -> None:
    with RunLock(tmp_path):
        (tmp_path / FILE).write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(UserError, match="in use by another process"), RunLock(tmp_path):
            pass


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with caplog.at_level(logging.WARNING), RunLock(tmp_path), RunLock(tmp_path):
        pass
    assert "without locks" in caplog.text


def test_a_place_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot lock .*: choose a run_dir"), RunLock(tmp_path / "file" / "run"):
        pass
