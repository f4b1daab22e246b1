"""The table of 125 cells that ships: that it is whole, what it answers, and that the tool makes it."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest

from supernet.benchmarks.digits import FILE, digits_table
from supernet.benchmarks.nasbench201 import all_archs
from supernet.benchmarks.table import read_table
from supernet.config import compose
from supernet.errors import UserError
from supernet.rank import Request, rank
from supernet.runtime.device import environment
from supernet.schema.benchmarks import DigitsTableConfig
from supernet.spaces.genotype import Genotype, load_genotype
from supernet.spaces.nasbench201 import Nasbench201Space
from supernet.train import retrain, train

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import digits_truth as tool

ARCHS = list(all_archs(states=3))
FAST = ["+experiment=digits_table", "debug=fast", "limit.images=96", "retrain.epochs=0"]


def test_the_table_has_every_cell_and_its_means() -> None:
    rows = read_table(FILE, "arch")
    assert list(rows) == ARCHS and len(ARCHS) == 125
    assert FILE.stat().st_size < 30_000
    for row in rows.values():
        for name in ("test", "valid"):
            assert row[name] == pytest.approx(statistics.fmean(row[f"{name}_{seed}"] for seed in (0, 1, 2)), abs=0.006)
    assert rows[ARCHS[0]]["test"] < 20, "nothing of the image gets through a cell that is none throughout"
    best = max(rows, key=lambda arch: rows[arch]["test"])
    assert rows[best]["test"] > 95 and "nor_conv_3x3" in best


def test_the_best_cell_has_no_regret_and_the_first_rank() -> None:
    truth = digits_table(DigitsTableConfig(), space=Nasbench201Space(1, 10, states=3))
    answers = [truth.answer(load_genotype(arch)) for arch in ARCHS]
    assert min(answer["regret"] for answer in answers) == 0
    for answer in answers:
        better = sum(other["test"] > answer["test"] for other in answers)
        assert (answer["rank"], answer["cells"]) == (1 + better, 125)
        assert answer["regret"] == max(other["test"] for other in answers) - answer["test"]


def test_a_search_is_told_what_it_found(tmp_path: Path) -> None:
    report = train(compose([*FAST, f"run_dir={tmp_path}"]))
    arch = str(Genotype.from_json(report["genotype"]))
    row = read_table(FILE, "arch")[arch]
    assert report["truth"].items() >= row.items() and report["truth"]["cells"] == 125
    assert "| regret |" in (tmp_path / "report.md").read_text()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    told = [line for line in lines if "truth/regret" in line]
    assert told and told[-1]["truth/test"] == row["test"] and told[-1]["truth/rank"] == report["truth"]["rank"]


def test_a_supernet_is_ranked_on_all_cells_without_asking_for_their_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(compose([*FAST, "method=random_ws", f"run_dir={tmp_path}"]))
    text = rank(Request(tmp_path, images=64))
    assert "score, n = 125" in text
    assert "ranking all 125 architectures by the weights" in capsys.readouterr().out
    assert len({row["genotype"] for row in json.loads((tmp_path / "rank.json").read_text())["rows"]}) == 125


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["space=darts"], "benchmark=digits needs space=nasbench201"),
        (["task=cifar10"], "benchmark=digits needs task=digits"),
        (["space.states=4"], r"benchmark=digits: its cells have 3 states, not space\.states=4"),
        (["space.operations=[none,sep_conv_3x3]"], r"benchmark=digits: the table has no cell \|none~0\|\+.*sep_conv"),
    ],
)
def test_what_the_table_does_not_know_is_refused_in_one_sentence(
    overrides: list[str], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said) as refused:
        train(compose([*FAST, *overrides, f"run_dir={tmp_path}"]))
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())


def test_a_cell_that_the_table_does_not_know_is_not_trained_first(tmp_path: Path) -> None:
    given = [*FAST[:-1], "genotype='|sep_conv_3x3~0|+|none~0|none~1|'", f"run_dir={tmp_path}"]
    with pytest.raises(UserError, match=r"benchmark=digits: the table has no cell \|sep_conv_3x3~0\|"):
        retrain(compose(given))
    assert not list(tmp_path.iterdir())


def made_up(seed: int) -> list[dict[str, Any]]:
    """Rows as the tool keeps them: a convolution is worth ten, and seed 1 prefers another cell at the top."""
    settings = tool.dataclasses.asdict(tool.config_of(ARCHS[0], 0, Path("unused")).retrain)
    rows = []
    for n, arch in enumerate(ARCHS):
        value = 50 + 10.0 * arch.count("conv") + n / 125 * (1 if seed == 0 else -1)
        row = {"arch": arch, "seed": seed, "test": round(value, 2), "valid": value - 1, "params": n, "macs": n}
        rows.append(row | {"seconds": 1.0, "settings": settings, "versions": {"torch": "2"}})
    return rows


def test_the_tool_goes_on_from_finished_rows_and_writes_what_ships(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*made_up(0), *made_up(1)]
    kept = tmp_path / "rows.jsonl"
    kept.write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    trained: list[Any] = []

    def missing(wanted: Any, found: Any, file: Path, jobs: int) -> None:
        trained.extend(key for key in wanted if key not in found)
        found[rows[0]["arch"], 0] = rows[0]

    monkeypatch.setattr(tool, "train_missing", missing)
    out = {name: tmp_path / f"table.{name}" for name in ("csv", "png")}
    arguments = ["--seeds", "0", "1", "--table", str(out["csv"]), "--plot", str(out["png"])]
    monkeypatch.setattr(sys, "argv", ["digits_truth.py", str(tmp_path), *arguments])
    tool.main()
    assert trained == [(ARCHS[0], 0)]
    table = read_table(out["csv"], "arch")
    assert list(table) == ARCHS and table[ARCHS[7]]["test_1"] == rows[132]["test"]
    assert out["png"].stat().st_size > 10_000
    assert "| Kendall tau between two seeds | 0." in capsys.readouterr().out
    kept.write_text(json.dumps(rows[0] | {"settings": {"epochs": 1}}) + "\n")
    with pytest.raises(SystemExit, match="rows of other settings"):
        tool.main()


def test_the_noise_floor_of_a_table_that_can_be_worked_out_by_hand() -> None:
    assert tool.regret_of_choosing([1, 3, 3], [9, 8, 6]) == 2.0, "ties are all tried"
    test = [[10.0, 20.0, 30.0], [12.0, 24.0, 22.0]]
    found = tool.noise_floor(test, [[1.0, 2.0, 0.0], [1.0, 0.0, 2.0]])
    assert found["std over seeds, all cells"] == pytest.approx(((2 + 8 + 32) / 3) ** 0.5)
    assert found["std over seeds, the best fifth"] == pytest.approx(((8 + 32) / 2) ** 0.5)
    assert found["std of the means, the best fifth"] == pytest.approx(8**0.5)
    assert found["regret of the best by one seed, judged by the others"] == (2 + 10) / 2
    assert found["regret of the best by one seed's validation, judged by the mean"] == (4 + 0) / 2
    assert found["Kendall tau between two seeds"] == pytest.approx(1 / 3)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["|skip_connect~0|+|none~0|nor_conv_3x3~1|", "|none~0|+|avg_pool_3x3~0|none~1|"])
def test_a_row_follows_from_its_command(arch: str) -> None:
    """The same figures with the same versions and instructions as in the table's header, else near ones."""
    row, made = read_table(FILE, "arch")[arch], tool.train_cell(arch, 1)
    import torch

    here, header = environment(torch.device("cpu")), FILE.read_text()
    same = all(f"{name} {here[name]}" in header for name in ("torch", "instructions"))
    tolerance = 0.0 if same else 4.0
    assert made["test"] == pytest.approx(row["test_1"], abs=tolerance)
    assert made["valid"] == pytest.approx(row["valid_1"], abs=tolerance)
    assert (made["params"], made["macs"]) == (row["params"], row["macs"])
