"""Texts that a reader of somebody else's files may meet, for hypothesis: nearly right ones, and any at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from supernet.benchmarks.table import read_table
from supernet.child import ChildSpec
from supernet.config import compose, from_yaml, to_yaml
from supernet.errors import UserError
from supernet.schema import Config
from supernet.spaces.genotype import Genotype, named_genotypes, parse_genotype

EDGE = st.lists(st.sampled_from(["skip_connect", "none", "sep_conv_3x3", -1, 0, 1, 2, 10**30, None, True, 0.5, []]))
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from([10**400, -1, "${oc.env:HOME}", "???", "\udcff", "x" * 300, "2001-99-99"]),
)  # fmt: skip
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)


@st.composite
def edited(draw: st.DrawFn, document: Any) -> Any:
    """A document with a few of its values, keys or branches replaced, removed, added or moved."""
    document = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 3))):
        node: Any = document
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(node[key], (dict, list)) and draw(st.integers(0, 3)):
                node = node[key]
                continue
            match draw(st.sampled_from(["replace", "remove", "add", "edge"])):
                case "replace":
                    node[key] = draw(ANYTHING)
                case "remove":
                    del node[key]
                case "add" if isinstance(node, dict):
                    node[draw(st.text(max_size=8))] = draw(ANYTHING)
                case _:
                    node[key] = draw(EDGE)
            break
    return document


@st.composite
def spliced(draw: st.DrawFn, text: str) -> str:
    """A text of which a piece is replaced by any other, or repeated."""
    start = draw(st.integers(0, len(text)))
    end = draw(st.integers(start, min(len(text), start + 40)))
    pieces = ["&a [*a, *a]", "!!python/object/apply:os.system [x]", "[" * 3000, "-" * 3000, "range(0, 10**9)", "\x00"]
    piece = draw(st.sampled_from(pieces) | st.text(max_size=20) | st.just(text[start:end] * 50))
    return text[:start] + piece + text[end:]


def genotype_texts() -> st.SearchStrategy[str]:
    darts = named_genotypes()["DARTS_V2"]
    arch = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|skip_connect~0|nor_conv_1x1~1|avg_pool_3x3~2|"
    nearly = [spliced(text) for text in (json.dumps(darts.to_json()), f"X = {darts}", arch)]
    return st.one_of(edited(darts.to_json()).map(json.dumps), ANYTHING.map(json.dumps), st.text(), *nearly)


def config_texts() -> st.SearchStrategy[str]:
    right = to_yaml(compose(["+experiment=darts_digits", "method=pc_darts", "run_dir=runs"]))
    documents = edited(yaml.safe_load(right)) | ANYTHING
    return st.one_of(documents.map(lambda d: str(yaml.safe_dump(d))), spliced(right), st.text())


def spec_texts() -> st.SearchStrategy[str]:
    spec = ChildSpec(
        named_genotypes()["DARTS_V2"], ("a", "b"), 1, (8, 8), (0.5,), (0.5,), 4, 3, {"name": "darts", "nodes": 4}
    )
    return edited(json.loads(spec.to_json())).map(json.dumps) | spliced(spec.to_json())


def table_texts() -> st.SearchStrategy[str]:
    return spliced("arch,index,a,b\n|x~0|,0,1.0,2\n|y~0|,1,3e1,-4\n") | st.text()


def reads_genotype(text: str, folder: Path) -> None:
    for genotype in parse_genotype(text).values():
        assert Genotype.from_json(genotype.to_json()) == genotype


def reads_config(text: str, folder: Path) -> None:
    assert isinstance(from_yaml(text), Config)


def reads_spec(text: str, folder: Path) -> None:
    try:
        spec = ChildSpec.from_json(text)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError):
        return  # load_child makes a sentence of these
    assert isinstance(spec.genotype, Genotype)


def reads_table(text: str, folder: Path) -> None:
    path = folder / "table.csv"
    path.write_bytes(text.encode(errors="surrogatepass"))
    rows = read_table(path, "arch", without=("index",))
    assert all(isinstance(value, float) for row in rows.values() for value in row.values())


Reader = Callable[[str, Path], None]
READERS: dict[str, tuple[Callable[[], st.SearchStrategy[str]], Reader]] = {
    "genotype": (genotype_texts, reads_genotype),
    "config.yaml of a run": (config_texts, reads_config),
    "metadata of a child": (spec_texts, reads_spec),
    "benchmark table": (table_texts, reads_table),
}


def fuzz(kind: str, examples: int, folder: Path) -> dict[str, int]:
    """Give a reader so many texts; how many it refused in a sentence, and how many it read. Anything else is raised."""
    texts, reader = READERS[kind]
    outcomes = {"refused in one sentence": 0, "read": 0}

    @settings(max_examples=examples, deadline=None, database=None)
    @given(texts())
    def run(text: str) -> None:
        try:
            reader(text, folder)
            outcomes["read"] += 1
        except UserError as error:
            assert str(error).strip() and "\n" not in str(error), str(error)
            outcomes["refused in one sentence"] += 1

    run()
    return outcomes
