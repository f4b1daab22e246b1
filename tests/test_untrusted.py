"""Files of somebody else: none executes anything, writes elsewhere or takes the memory; each is read or refused in one
sentence."""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path

import pytest
from helpers import tiny_config

from supernet.config import from_yaml, to_yaml
from supernet.errors import UserError
from supernet.runtime.packing import Damaged, unpack

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import fault_test  # noqa: E402
import fuzzing  # noqa: E402
import hostile  # noqa: E402


@pytest.mark.parametrize("kind", hostile.HOSTILE)
def test_a_hostile_file_is_refused_in_one_sentence(kind: str, tmp_path: Path) -> None:
    assert fault_test.guarded(kind, tmp_path) in ("refused in one sentence", "named, the previous one used")


def test_a_compressed_archive_is_refused_before_anything_is_unpacked(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(hostile.PICKLES["compressed 20 MB"](tmp_path))
    with pytest.raises(Damaged, match="no archive as torch writes it"):
        unpack(tmp_path / "a.pt")


@pytest.mark.parametrize("kind", fuzzing.READERS)
def test_a_reader_refuses_in_one_sentence_or_reads(kind: str, tmp_path: Path) -> None:
    outcomes = fuzzing.fuzz(kind, 30, tmp_path)
    assert sum(outcomes.values()) >= 30


def test_a_configuration_with_an_alias_or_an_interpolation_is_none_of_a_run() -> None:
    text = to_yaml(tiny_config("run_dir=runs"))
    assert from_yaml(text).run_dir == "runs"
    with pytest.raises(UserError, match="alias"):
        from_yaml(text.replace("run_dir: runs", "run_dir: &a runs\nname: *a"))
    for value in ("${oc.env:HOME}", '"\\u0024{seed}"'):
        with pytest.raises(UserError, match="plain keys and values"):
            from_yaml(text.replace("run_dir: runs", f"run_dir: {value}"))


def test_the_guard_sees_what_it_is_there_to_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {
        "takes memory": lambda folder: bytearray(4 * 10**9),
        "takes for ever": lambda folder: signal.pause(),
        "executes": lambda folder: (folder / hostile.MARK).touch(),
        "crashes": lambda folder: {}["x"],
        "dies": lambda folder: os.kill(os.getpid(), signal.SIGKILL),
    }
    monkeypatch.setattr(hostile, "HOSTILE", cases)
    monkeypatch.setattr(fault_test, "SECONDS", 2)
    said = [fault_test.guarded(kind, tmp_path) for kind in cases]
    assert all(outcome.startswith("FAILED") for outcome in said), said
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY, "limits are for the guarded process"
