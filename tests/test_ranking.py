"""The ranking command: correlations, the truth by children, what it refuses, and what an interrupt keeps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import make_search, tiny_config

from supernet import ranking
from supernet.decisions import Decisions
from supernet.errors import UserError
from supernet.rank import Request, main, rank, read_request
from supernet.ranking import correlations, judge_all, random_list
from supernet.train import train

PATHS = ("method=random_ws", "space.nodes=1", "derive.queries=2")


def test_correlations_of_known_orders() -> None:
    draw = np.random.default_rng(1)
    truth = draw.normal(size=200)
    rows = [
        {"genotype": str(i), "truth": t, "params": -t, "same": 3 * t + 1, "noise": draw.normal(), "constant": 1.0}
        for i, t in enumerate(truth)
    ]
    found = {c.score: c for c in correlations(rows)}
    assert (found["same"].tau, found["same"].rho, found["same"].precision) == pytest.approx((1, 1, 1))
    assert found["params"].tau == pytest.approx(-1)
    assert found["same"].above_params == pytest.approx(2)
    assert abs(found["noise"].tau) < 0.15
    assert found["noise"].tau_error == pytest.approx((4 / 9 / 200) ** 0.5, rel=0.25), "of independent rankings, about"
    assert found["noise"].low < found["noise"].above_params < found["noise"].high
    assert found["constant"].tau == 0


def test_the_list_is_fixed_and_has_no_architecture_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decisions = Decisions(make_search(tmp_path, *PATHS).parts.space)
    listed = random_list(decisions, 30, seed=0)
    assert listed == random_list(decisions, 30, seed=0) != random_list(decisions, 30, seed=1)
    assert len({str(decisions.genotype(v)) for v in listed}) == 30
    monkeypatch.setattr(ranking, "TRIES", 2)
    small = Decisions(make_search(tmp_path / "small", *PATHS, "space.operations=[none,skip_connect]").parts.space)
    with pytest.raises(UserError, match=r"n=500: only \d+ different architectures were drawn"):
        random_list(small, 500, seed=0)


def test_an_interrupted_ranking_goes_on(tmp_path: Path) -> None:
    search = make_search(tmp_path, *PATHS, "search.statistics=running")
    decisions, asked = Decisions(search.parts.space), []
    listed = random_list(decisions, 6, seed=0)

    def truth(values: Any) -> float:
        asked.append(values)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return float(sum(values))

    with pytest.raises(KeyboardInterrupt):
        judge_all(search, listed, truth, tmp_path / "rows.json")
    rows = judge_all(search, listed, truth, tmp_path / "rows.json")
    assert asked == [*listed[:4], *listed[3:]]
    assert rows == judge_all(search, listed, truth, tmp_path / "other.json")
    assert {"loss", "accuracy", "loss_tracked", "accuracy_tracked", "params"} < set(rows[0])
    assert any(row["loss"] != row["loss_tracked"] for row in rows)


def test_a_run_is_ranked_against_children_and_the_report_shows_it(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with pytest.raises(UserError, match=r"there is no config\.yaml"):
        rank(Request(run_dir))
    train(tiny_config(*PATHS, f"run_dir={run_dir}"), run_dir)
    text = rank(Request(run_dir, n=3))
    assert "Kendall tau" in text
    document = json.loads((run_dir / "rank.json").read_text())
    assert [0 <= row["truth"] <= 1 for row in document["rows"]] == [True] * 3
    assert "Ranking by the shared weights" in (run_dir / "report.md").read_text()
    assert (run_dir / "rank.png").read_bytes().startswith(b"\x89PNG")
    before = (run_dir / "rank.json").read_text()
    assert rank(Request(run_dir, n=3)) == text, "nothing is trained again"
    assert (run_dir / "rank.json").read_text() == before
    with pytest.raises(UserError, match=r"no checkpoint of its search after epoch 9"):
        rank(Request(run_dir, epoch=9))


def test_an_unfinished_supernet_is_refused(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    train(
        tiny_config(*PATHS, "limit.epochs=null", "search.epochs=2", "retrain.epochs=0", f"run_dir={run_dir}"), run_dir
    )
    newest = max((run_dir / "checkpoints" / "search").iterdir())
    newest.unlink()
    with pytest.raises(UserError, match=r"stands at epoch 1 of 2: finish it with resume=auto, or .* epoch=1"):
        rank(Request(run_dir, n=3))
    with pytest.raises(UserError, match=r"retrain\.epochs=0.*give benchmark=NAME"):
        rank(Request(run_dir, n=3, epoch=1))
    with pytest.raises(UserError, match="benchmark=nope is not known"):
        rank(Request(run_dir, benchmark="nope"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["n=20"], "give run=DIR"),
        (["run=x", "n=two"], "n=two: it must be a whole number of at least 3"),
        (["run=x", "epok=3"], "'epok=3' is not an argument of rank"),
        (["run=x", "benchmark.path=t.csv"], "there is no config"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_help_answers_without_torch() -> None:
    code = "import sys; from supernet.rank import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
    assert read_request(["run=a", "n=5"]) == Request(Path("a"), 5)
