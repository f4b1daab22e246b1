"""Every method, and every registered part, does what a part has to: tests over the tables, so that a new YAML file or a
new registered part is tested without a new test."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compositions import (
    GROUPS,
    METHODS,
    MODIFIERS,
    REGISTERED,
    Outcome,
    base,
    frozen,
    late,
    pairs,
    random_task,
    refusal,
    run,
    run_interrupted,
    together,
)

from supernet.registry import PARTS
from supernet.schema import Config

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import methods as methods_tool  # noqa: E402

FIVE = "space.operations=[none,max_pool_3x3,skip_connect,sep_conv_3x3,dil_conv_3x3]"
FEW = ("limit.steps=2", "space.nodes=1", FIVE)
PAIR = ("limit.steps=1", "space.nodes=1", "space.reductions=0", "limit.cells=2", FIVE)
MORE = ("limit.steps=2", "space.nodes=2", "search.statistics=running")
"""Options that make the networks of the fast tests, of the pairs, and of the slow tests."""


def composed(text: str, *overrides: str) -> Config:
    """The tiny configuration of a method, or of one option and whatever it needs."""
    group, name = text.split("=")
    return together((), *overrides, **{group: name}) if (group, name) in PARTS else base(*overrides, text)


def compositions() -> list[str]:
    """All methods, and what no method chooses: single options, and the files that vary one."""
    root = ROOT / "conf"
    chosen = {
        (g, o) for m in METHODS for g, os in methods_tool.overrides(root / "method" / f"{m}.yaml").items() for o in os
    }
    configs = [composed(f"method={name}", *FEW) for name in METHODS]
    chosen |= {(group, getattr(config, group).name) for config in configs for group in GROUPS}
    options = [(g, n) for g, n in REGISTERED if g in GROUPS]
    options += [(g, path.stem) for g in GROUPS for path in sorted((root / g).glob("*.yaml"))]
    return [f"method={name}" for name in METHODS] + [f"{g}={n}" for g, n in options if (g, n) not in chosen]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outcome]:
    """The run of a composition, once for all tests that look at it."""
    return functools.cache(lambda text: run(composed(text, *FEW), tmp_path_factory.mktemp("run"), random_task()))


@pytest.mark.parametrize("text", compositions())
def test_every_composition_takes_its_steps_and_resumes_bit_for_bit(
    text: str, tmp_path: Path, undisturbed: Callable[[str], Outcome]
) -> None:
    check_resumes(undisturbed(text), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("text", compositions())
def test_every_composition_does_so_with_all_operations_and_running_statistics(text: str, tmp_path: Path) -> None:
    check_resumes(run(composed(text, *MORE), tmp_path / "whole", random_task()), tmp_path)


def check_resumes(whole: Outcome, tmp_path: Path) -> None:
    search, config = whole.search, whole.search.config
    if search.parts.derivation.needs_search:
        assert len(whole.steps) == search.steps_per_epoch * (3 if search.stopped is None else search.epoch)
    for step in whole.steps:
        assert all(map(torch.isfinite, map(torch.tensor, step["values"].values())))
        assert not step["wrong"], "the weights move in their steps, and in no others"
        may_move = step["moves"] and config.update.name != "frozen"
        assert step["moved"] == may_move, "alpha moves exactly where no part holds it back"
    cells = whole.genotype.cells
    assert set(cells) == {group.name for group in search.parts.space.groups}
    for group in search.parts.space.groups:
        derivable = {group.options[k] for n in range(group.decisions) for k in group.derivable(n)}
        assert {operation for operation, _ in cells[group.name].edges} <= derivable
    search.parts.space.check_genotype(whole.genotype)
    if len(whole.steps) > 3:
        resumed = run_interrupted(config, tmp_path / "resumed", random_task())
        assert len(resumed.steps) < len(whole.steps), "the second half came from a checkpoint"
        assert resumed.all()[1:] == whole.all()[1:]


def different_parts(a: Config, b: Config) -> set[str]:
    """The groups in which two configurations differ; of ``modifier``, the modifiers by name."""
    differing = {group for group in GROUPS if getattr(a, group) != getattr(b, group)}
    return differing | {
        f"modifier={name}" for name in {*a.modifier, *b.modifier} if a.modifier.get(name) != b.modifier.get(name)
    }


def own_output(outcome: Outcome, parts: set[str]) -> Any:
    """What parts that act on no step give: the genotypes of some p, the figures and decisions of stopping rules, the
    subgraphs that a derivation asked for."""
    search, derived = outcome.search, [str(outcome.genotype)]
    if "derive" in parts:
        kept = {name: alpha.detach().clone() for name, alpha in search.parts.mixer.values().items()}
        for seed in range(5):
            draw = torch.Generator().manual_seed(seed)
            search.parts.mixer.set_values({k: torch.randn(a.shape, generator=draw) for k, a in kept.items()})
            derived.append(str(search.derived()[1]))
        search.parts.mixer.set_values(kept)
    return derived, outcome.figures, search.stopped, (outcome.state["derive"] or {}).get("judged")


def test_methods_that_differ_in_a_part_differ_in_what_that_part_does(undisturbed: Callable[[str], Outcome]) -> None:
    for a, b in itertools.combinations(METHODS, 2):
        parts = different_parts(composed(f"method={a}", *FEW), composed(f"method={b}", *FEW))
        assert parts, f"{a} and {b} are the same composition"
        first, second = undisturbed(f"method={a}"), undisturbed(f"method={b}")
        if first.acts() != second.acts():
            continue
        may_wait = {"derive", *(f"modifier={name}" for o in (first, second) for name in late(o.search))}
        assert parts <= may_wait, f"{a} and {b} differ in {parts}, and in no loss, weight or alpha"
        assert own_output(first, parts) != own_output(second, parts), (
            f"{a} and {b} differ in {parts}, which gives the same"
        )


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Config, str], Any]:
    """What the composition without a modifier comes to, run before the modifier was."""
    seen: dict[str, Any] = {}

    def outcome(config: Config, lean: str) -> Any:
        key = f"{lean} {config}"
        if key not in seen:
            seen[key] = run(config, tmp_path_factory.mktemp("off"), random_task(), lean=lean).all()
        return seen[key]

    return outcome


def plain(config: Config, modifier: str) -> Config:
    """The composition of a modifier, with all that it needs, but without it."""
    return dataclasses.replace(config, modifier={k: v for k, v in config.modifier.items() if k != modifier})


@pytest.mark.parametrize("modifier", MODIFIERS)
def test_every_modifier_changes_something_when_on_and_nothing_when_off(
    modifier: str, tmp_path: Path, before: Callable[[Config, str], Any]
) -> None:
    for lean, nodes in (("", 1), ("skip_connect", 2)):  # some only act on what grows too strong
        config = together([modifier], *PAIR, f"space.nodes={nodes}")
        expected = before(plain(config, modifier), lean)
        on = run(config, tmp_path / f"on{lean}", random_task(), lean=lean)
        state = on.state["search"]["modifiers"]
        del state[modifier]  # what it keeps for itself is no effect
        if on.all() != expected:
            off = run(plain(config, modifier), tmp_path / f"off{lean}", random_task(), lean=lean).all()
            assert off == expected, "a modifier leaves nothing behind for the next search"
            return
    raise AssertionError(f"modifier={modifier} is accepted and does nothing")


REFUSED = {pair: why for pair in pairs() if (why := refusal(pair)) is not None}
ALLOWED = [pair for pair in pairs() if pair not in REFUSED]


def test_needs_and_refusals_name_registered_parts() -> None:
    for (group, name), part in PARTS.items():
        named = [(g, n) for g, names in part.needs.items() for n in names]
        named += [(g, n) for g, _, n in (key.partition("=") for key in part.refuses)]
        assert set(named) <= set(PARTS), f"{group}={name}"
        assert (group, name) not in named
        assert all(len(reason.split()) > 3 and not reason.endswith(".") for reason in part.refuses.values())


@pytest.mark.parametrize("pair", REFUSED, ids="+".join)
def test_every_refused_pair_says_why_in_one_sentence(pair: tuple[str, str]) -> None:
    assert "\n" not in REFUSED[pair]
    assert re.search(r" needs \w+=.+: choose it, or leave \w+ out$| does not go with \w+=\w+: \w+ ", REFUSED[pair])
    needed = [name for one in pair for name in PARTS["modifier", one].needs.get("modifier", ())]
    assert any(name in REFUSED[pair] for name in (*pair, *needed))


def cliques() -> list[tuple[str, ...]]:
    """Few sets of modifiers that go together and contain every allowed pair."""
    left, found = set(ALLOWED), []
    while left:
        chosen = list(min(left))
        while True:
            gain = {n: sum(tuple(sorted((n, other))) in left for other in chosen) for n in MODIFIERS if n not in chosen}
            best = sorted((n for n in gain if gain[n]), key=lambda n: -gain[n])
            following = next((n for n in best if refusal([*chosen, n]) is None), None)
            if following is None:
                break
            chosen.append(following)
        found.append(tuple(sorted(chosen)))
        left -= set(itertools.combinations(sorted(chosen), 2))
    return found


def check_runs(modifiers: tuple[str, ...], folder: Path) -> None:
    config = together(modifiers, *PAIR)
    outcome = run(config, folder, random_task(16))
    assert set(modifiers) <= set(outcome.search.parts.modifiers)
    assert outcome.search.step >= 2 or outcome.search.stopped
    assert all(map(torch.isfinite, map(torch.tensor, (v for step in outcome.steps for v in step["values"].values()))))
    outcome.search.parts.space.check_genotype(outcome.genotype)


@pytest.mark.parametrize("modifiers", cliques(), ids=lambda names: f"{len(names)}-{'+'.join(names)}"[:60])
def test_modifiers_that_go_together_run_together(modifiers: tuple[str, ...], tmp_path: Path) -> None:
    check_runs(modifiers, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("pair", ALLOWED, ids="+".join)
def test_every_allowed_pair_runs(pair: tuple[str, str], tmp_path: Path) -> None:
    check_runs(pair, tmp_path)


@pytest.mark.parametrize("method", methods_tool.read(ROOT), ids=lambda method: method.name)
def test_every_method_has_a_page_with_its_paper_and_command(method: methods_tool.Method) -> None:
    header = [
        line for line in (ROOT / "conf" / "method" / f"{method.name}.yaml").read_text().splitlines() if line[:1] == "#"
    ]
    assert f"method={method.name}" in header[1]
    assert method.page is not None, f"docs/methods/{method.name}.md is missing"
    text = method.page.read_text()
    assert method.paper, "the header names a paper"
    assert method.paper in text
    assert re.search(rf"method={method.name}(?!\w)", text), "the page gives the command"


def test_every_method_chooses_every_kind_of_part() -> None:
    for method in METHODS:
        chosen = methods_tool.overrides(ROOT / "conf" / "method" / f"{method}.yaml")
        assert set(chosen) == {*GROUPS, "modifier"}, f"method={method} leaves a part of the method before it in place"


def test_bits_are_compared() -> None:
    a = torch.tensor([0.0, 1.0])
    assert frozen({"a": [a]}) == frozen({"a": [a.clone()]})
    assert frozen({"a": [a]}) != frozen({"a": [torch.tensor([-0.0, 1.0])]})
