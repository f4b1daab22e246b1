"""The project as it is installed: what a wheel holds, and that it runs from there in any directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def _project() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def test_every_dependency_has_a_bound_and_a_reason() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text()
    for requirement in (*_project()["dependencies"], *_project()["optional-dependencies"]["dev"]):
        assert re.search(r">=\d", requirement), requirement
        if requirement in _project()["dependencies"]:
            assert re.search(re.escape(f'"{requirement}",') + r"\s+# \w", text), f"{requirement}: no reason"


def test_the_installed_versions_are_allowed() -> None:
    from importlib.metadata import version

    for requirement in _project()["dependencies"]:
        match = re.match(r"([\w-]+)>=([\d.]+)", requirement)
        assert match is not None
        installed = tuple(int(n) for n in re.findall(r"\d+", version(match[1])))
        assert installed >= tuple(int(n) for n in match[2].split(".")), requirement


def test_every_console_script_exists() -> None:
    import importlib

    for target in _project()["scripts"].values():
        module, _, name = target.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


def test_the_check_is_executable() -> None:
    assert os.access(REPOSITORY / ".ci" / "run", os.X_OK)


@pytest.mark.slow
def test_a_wheel_carries_conf_and_tables_and_runs_in_another_directory(tmp_path: Path) -> None:
    def run(*command: str, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path / "dist"), str(REPOSITORY))
    [wheel] = (tmp_path / "dist").glob("supernet-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    conf = {f"supernet/{path.relative_to(REPOSITORY)}" for path in (REPOSITORY / "conf").rglob("*.yaml")}
    assert conf <= set(names)
    assert "supernet/benchmarks/digits_cells.csv" in names
    assert "supernet/spaces/banks/passes.cpp" in names, "or engine=compiled would go on without its passes"
    assert not [name for name in names if not name.startswith("supernet")]
    run("-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "site"), str(wheel))
    where = {"PYTHONPATH": str(tmp_path / "site")}
    found = run("-c", "import supernet.config.store as s; print(s.CONF)", **where)
    assert Path(found.strip()) == tmp_path / "site" / "supernet" / "conf"
    assert "darts_cifar" in run("-m", "supernet.train", "--help", **where)
    assert "name: darts_digits" in run("-m", "supernet.train", "--cfg", "job", "+experiment=darts_digits", **where)
