"""Spaces whose network is not made of cells, over the tables: every method and every part runs there, or says in a
sentence why it does not."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from compositions import METHODS, MODIFIERS, REGISTERED, option, random_task, run, run_interrupted
from helpers import tiny_space_config

from supernet.config.check import check_together
from supernet.errors import UserError
from supernet.registry import PARTS
from supernet.schema import Config

SPACES = {
    "chain": ("limit.cells=2", "space.depths=[1,2]"),
    "enas_macro": ("limit.cells=3", "space.operations=[enas_conv_3x3,enas_sep_conv_3x3,enas_max_pool_3x3]"),
}
OF_CELLS = {
    "auxiliary_skip", "drop_path", "edge_norm", "layer_alignment", "partial_channels", "progressive_shrinking",
    "prune_widen", "ranking_stop", "skip_dropout", "skip_limit", "skip_stop",
}  # fmt: skip
"""Modifiers of cells."""

REFUSED_METHODS = {"darts_minus", "darts_plus", "drnas", "fairdarts", "lambda_darts", "p_darts", "pc_darts"}
"""Methods that have a part of cells. What else is refused belongs to a space."""

ALSO_REFUSED = {"chain": {"cost", "gdas", "hard_gumbel", "oles", "operation_freezing"}, "enas_macro": set()}

FAST = {"darts", "enas", "gdas", "spos"}
"""Methods that stand for the others where time is short: p dense, sampled, one path a step, and a controller's."""


def sifted(names: Iterable[str], fast: set[str]) -> list[Any]:
    """Parameters of a test, the slow ones marked."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in sorted(names)]


@functools.cache
def tiny(space: str, *overrides: str) -> Config:
    return tiny_space_config(space, *SPACES[space], "limit.steps=1", "limit.epochs=2", "limit.batch=8", *overrides)


def check_run(config: Config, folder: Path) -> None:
    outcome = run(config, folder, random_task(16))
    values = [v for step in outcome.steps for v in step["values"].values()]
    assert all(map(torch.isfinite, map(torch.tensor, values)))
    for step in outcome.steps:
        assert not step["wrong"]
        assert step["moved"] == (step["moves"] and config.update.name != "frozen")
    outcome.search.parts.space.check_genotype(outcome.genotype)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("method", sifted(METHODS, FAST | REFUSED_METHODS))
def test_every_method_searches_or_says_why_not(space: str, method: str, tmp_path: Path) -> None:
    expected = method in REFUSED_METHODS | ALSO_REFUSED[space]
    try:
        config = tiny(space, f"method={method}")
    except UserError as error:
        assert expected, error
        assert re.search(rf"does not go with space={space}: ", str(error))
        return
    assert not expected
    check_run(config, tmp_path)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", sifted((n for g, n in REGISTERED if g == "relaxation"), {"sigmoid"}))
def test_every_relaxation_searches(space: str, name: str, tmp_path: Path) -> None:
    if name not in ALSO_REFUSED[space]:
        check_run(dataclasses.replace(tiny(space), relaxation=option("relaxation", name)), tmp_path)


@pytest.mark.parametrize("space", SPACES)
def test_a_search_resumes_bit_for_bit(space: str, tmp_path: Path) -> None:
    config = tiny(space, "limit.steps=2", "search.statistics=running")
    whole = run(config, tmp_path / "whole", random_task(32))
    assert run_interrupted(config, tmp_path / "resumed", random_task(32)).all()[1:] == whole.all()[1:]


@pytest.mark.parametrize("space", SPACES)
def test_modifiers_of_cells_are_refused_in_one_sentence(space: str) -> None:
    base, refused = tiny(space), set()
    for name in MODIFIERS:
        try:
            check_together(dataclasses.replace(base, modifier={name: option("modifier", name)}))
        except UserError as error:
            if f"space={space}" in str(error):
                refused.add(name)
                assert "\n" not in str(error)
    assert refused == (OF_CELLS - {"prune_widen"}) | (ALSO_REFUSED[space] & set(MODIFIERS))


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("modifier", sifted(set(MODIFIERS) - OF_CELLS, {"cost"}))
def test_every_other_modifier_runs(space: str, modifier: str, tmp_path: Path) -> None:
    needs = PARTS["modifier", modifier].needs
    overrides = [f"{group}={names[0]}" for group, names in needs.items() if group != "space"]
    if modifier not in ALSO_REFUSED[space] and space in needs.get("space", (space,)):
        check_run(tiny(space, f"modifier=[{modifier}]", *overrides), tmp_path)
