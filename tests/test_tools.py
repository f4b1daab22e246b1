"""The tools that write documents and tables: what they read, and that what they wrote is not stale."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import equations  # noqa: E402
import methods  # noqa: E402


def places(docstring: str) -> list[str]:
    return [f"{a.paper} {a.arxiv} {a.place}" for a in equations.addresses(docstring)]


def test_addresses_are_read_in_every_form_of_the_convention() -> None:
    assert places("DARTS (arXiv:1806.09055), eq. 7: formula") == ["DARTS 1806.09055 eq. 7"]
    assert places("The space of DARTS (arXiv:1806.09055), section\n    2.4 and 3.1.1, as coded.") == [
        "DARTS 1806.09055 section 2.4",
        "DARTS 1806.09055 section 3.1.1",
    ]
    assert [p.split(" ", 2)[2] for p in places("X (arXiv:1234.56789), eq. 5 to 7, eq. 9a and algorithm 1. Then")] == [
        "eq. 5",
        "eq. 6",
        "eq. 7",
        "eq. 9a",
        "algorithm 1",
    ]
    assert places("Smooth DARTS (arXiv:2002.05283), eq. 8. beta-DARTS (arXiv:2203.01665), appendix A.1: p") == [
        "Smooth DARTS 2002.05283 eq. 8",
        "beta-DARTS 2203.01665 appendix A.1",
    ]
    assert places("Cutout (arXiv:1708.04552) as published") == ["Cutout 1708.04552 paper"]
    assert places("no paper, eq. 3") == []


def test_what_only_looks_like_an_address_is_told() -> None:
    assert equations.deviation("DARTS, eq. 7: formula") == "eq. 7"
    assert equations.deviation("The search (DARTS, arXiv:1806.09055, algorithm 1).") == "arXiv:1806.09055"
    assert equations.deviation("DARTS (arXiv:1806.09055), eq. 7, like (someone, arXiv:1708.04552).") is None
    assert equations.deviation("Formats a table.") is None


def test_tests_belong_to_the_functions_that_they_name(tmp_path: Path) -> None:
    (tmp_path / "supernet").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "supernet" / "part.py").write_text(
        'class Part:\n    """P (arXiv:1234.56789), eq. 1."""\n'
        '    def mean(self):\n        """P (arXiv:1234.56789), eq. 2."""\n'
        'def alone():\n    """P (arXiv:1234.56789), eq. 3."""\ndef plain():\n    """Nothing."""\n'
    )
    (tmp_path / "tests" / "test_part.py").write_text(
        "from supernet.part import Part as Q\nfrom supernet import part\nCASES = [Q]\n"
        "def helper():\n    return Q().mean()\n"
        "def test_table(case=CASES):\n    pass\n"
        "def test_helper():\n    helper()\n"
        "def test_module():\n    part.alone()\n"
        "def test_other():\n    Part, alone = 1, 2\n"
    )
    cited, wrong = equations.collect(tmp_path)
    assert not wrong
    assert {s.name: [t.partition("::")[2] for t in s.tests] for s in cited} == {
        "Part": ["test_table", "test_helper"],
        "Part.mean": ["test_helper"],
        "alone": ["test_module"],
    }


def test_the_table_of_methods_is_read_from_yaml_and_put_between_markers() -> None:
    rows = {m.name: m for m in methods.read(ROOT)}
    assert rows["darts_2nd"].parts == {
        "relaxation": ("softmax",),
        "update": ("unrolled",),
        "modifier": (),
        "derive": ("top2",),
    }
    assert rows["darts_2nd"].arxiv == "1806.09055"
    assert rows["darts_2nd"].page == ROOT / "docs" / "methods" / "darts.md"
    begin, end = methods.MARKERS
    assert methods.rewritten(f"a {begin}old\n{end} b", "new") == f"a {begin}\nnew\n{end} b"
    with pytest.raises(SystemExit, match="which are not there"):
        methods.rewritten("no markers", "new")


@pytest.mark.parametrize("tool", ["equations", "methods"])
def test_what_a_tool_wrote_is_not_stale(tool: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / f"{tool}.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
