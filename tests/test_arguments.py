"""The arguments of the commands that use a run are read in one way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from supernet.arguments import read_arguments
from supernet.errors import UserError
from supernet.predict import main as predict
from supernet.rank import main as rank
from supernet.report.__main__ import main as report

COMMANDS = {"predict": predict, "rank": rank, "report": report}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run=a", "run=b"], "error: run=b: give run once, with a value\n"),
        (["run="], "error: run=: give run once, with a value\n"),
    ],
)
def test_a_key_is_given_once(
    command: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert COMMANDS[command](arguments) == 2
    assert capsys.readouterr().err == said
    monkeypatch.setattr("sys.argv", [command])
    assert COMMANDS[command]() == 2, "nothing is given"
    assert capsys.readouterr().out.startswith(f"python -m supernet.{command} run=DIR")


@pytest.mark.parametrize("command", [predict, rank])
def test_plugins_are_imported_before_anything_is_read(
    command: Callable[[Sequence[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["run=a", "plugins=[there_is_no_such_module]", *["b.png"] * (command is predict)]) == 2
    assert "cannot import 'there_is_no_such_module'" in capsys.readouterr().err


def test_a_file_may_have_a_sign_of_equality() -> None:
    assert read_arguments("predict", ("run",), ["x=1.png", "run=a=b", "-"], files=True) == (
        {"run": "a=b"},
        ["x=1.png", "-"],
    )
    with pytest.raises(UserError, match=r"'x=1\.png' is not an argument of rank"):
        read_arguments("rank", ("run",), ["x=1.png"])


def test_what_is_no_mistake_of_the_user_keeps_its_traceback(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("supernet.predict.predict", fails)
    assert predict([f"run={tmp_path}", "a.png"]) == 1
    assert "ZeroDivisionError: ours" in capsys.readouterr().err
