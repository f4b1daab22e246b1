"""Genotypes as text: what is written is read back, what is wrong is named, nothing is ever evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supernet.errors import UserError
from supernet.spaces.genotype import (
    CellGenotype,
    Genotype,
    load_genotype,
    named_genotypes,
    parse_genotype,
    validate,
)

OPERATIONS = ("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3")

PUBLISHED = """
from collections import namedtuple
Genotype = namedtuple('Genotype', 'normal normal_concat reduce reduce_concat')
PRIMITIVES = ['none', 'max_pool_3x3']
open('evaluated', 'w')

DARTS_V2 = Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1),
  ('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5],
  reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0),
  ('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])
BY_POSITION = g.Genotype([('skip_connect', 0), ('skip_connect', 0)], range(2, 3), [('skip_connect', 1)] * 0 or [], [])
"""
ALIAS = PUBLISHED.replace(PUBLISHED.splitlines()[-1], "DARTS = DARTS_V2")


@st.composite
def cells(draw: st.DrawFn) -> CellGenotype:
    nodes, inputs = draw(st.integers(1, 6)), draw(st.sampled_from([1, 2]))
    built = []
    for node in range(nodes):
        edge = st.tuples(st.sampled_from(OPERATIONS[1:]), st.integers(0, node + inputs - 1))
        built.append(tuple(draw(st.lists(edge, min_size=int(node == 0), max_size=3))))
    concat = draw(st.lists(st.integers(inputs, nodes + inputs - 1), min_size=1, unique=True))
    return CellGenotype(tuple(built), tuple(concat), inputs)


genotypes = st.builds(Genotype, st.dictionaries(st.sampled_from(["normal", "reduce", "cell"]), cells(), min_size=1))


@settings(deadline=None)
@given(genotypes)
def test_written_is_read_back(genotype: Genotype) -> None:
    validate(genotype, OPERATIONS)
    assert Genotype.from_json(genotype.to_json()) == genotype
    assert parse_genotype(json.dumps(genotype.to_json())) == {"genotype": genotype}
    assert parse_genotype(str(genotype)) == {"genotype": genotype}
    if str(genotype).startswith("Genotype("):  # and no arch string, which is no Python
        assert parse_genotype(f"X = {genotype}\nY: object = X") == {"X": genotype, "Y": genotype}


def test_darts_is_written_as_the_community_writes_it() -> None:
    darts = load_genotype("DARTS_V1")
    written = darts.to_json()
    assert list(written) == ["normal", "normal_concat", "reduce", "reduce_concat"]
    assert written["normal"][:2] == [["sep_conv_3x3", 1], ["sep_conv_3x3", 0]]
    assert len(written["reduce"]) == 8 and written["reduce_concat"] == [2, 3, 4, 5]
    assert str(darts).startswith("Genotype(normal=[('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 0)")
    assert str(darts).endswith("('avg_pool_3x3', 0)], reduce_concat=[2, 3, 4, 5])")


def test_nodes_with_other_numbers_of_edges_are_lists_of_nodes() -> None:
    cell = CellGenotype(((("skip_connect", 0),), (), (("skip_connect", 2), ("skip_connect", 2))), (3, 4))
    genotype = Genotype({"normal": cell})
    assert genotype.to_json() == {
        "normal": [[["skip_connect", 0]], [], [["skip_connect", 2], ["skip_connect", 2]]],
        "normal_concat": [3, 4],
    }


def test_published_source_is_read_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = parse_genotype(ALIAS)
    assert found == {"DARTS_V2": load_genotype("DARTS_V2"), "DARTS": load_genotype("DARTS_V2")}
    with pytest.raises(UserError, match=r"line 10: .*boolop is refused"):
        parse_genotype(PUBLISHED)
    assert not list(tmp_path.iterdir())


def test_files(tmp_path: Path) -> None:
    several, one = tmp_path / "genotypes.py", tmp_path / "genotype.json"
    several.write_text(
        ALIAS.replace("DARTS = DARTS_V2", "OTHER = Genotype([['s', 0], ['s', 1]], [2], [['s', 0], ['s', 1]], [2])")
    )
    one.write_text(json.dumps(load_genotype("DARTS_V1").to_json()))
    assert load_genotype(str(one)) == load_genotype("DARTS_V1")
    assert load_genotype(f"{several}:DARTS_V2") == load_genotype("DARTS_V2")
    assert load_genotype(f"{several}:OTHER").cells["reduce"].nodes == ((("s", 0), ("s", 1)),)
    with pytest.raises(UserError, match=r"several; choose one with .*genotypes.py:NAME; Valid: DARTS_V2, OTHER"):
        load_genotype(str(several))
    with pytest.raises(UserError, match="no genotype 'DARTS_V3'; did you mean 'DARTS_V2'"):
        load_genotype(f"{several}:DARTS_V3")
    with pytest.raises(UserError, match="did you mean 'DARTS_V1'"):
        load_genotype("DARTSV1")
    one.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read as text"):
        load_genotype(str(one))


def change(kind: str, **fields: object) -> dict[str, object]:
    return load_genotype("DARTS_V1").to_json() | {f"{kind}{key}": value for key, value in fields.items()}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "no cells"),
        ([], "expected"),
        ({"normal": []}, "stands without 'normal_concat'"),
        ({"normal_concat": []}, "stands without 'normal'"),
        ({"normal": [], "normal_concat": [2]}, "normal: the cell has no edges"),
        ({"normal": 7, "normal_concat": [2]}, "expected a list"),
        (change("normal", _concat=[2, 6]), "normal_concat: state 6 is no node; nodes are 2 to 5"),
        (change("reduce", _concat=[1]), "reduce_concat: state 1 is no node"),
        (change("reduce", _concat=[]), "must name nodes"),
        (change("reduce", _concat=[2, 2]), "each once"),
        (change("reduce", _concat=[True]), "expected a list of states"),
        ({"normal": [["s", 0]], "normal_concat": [2]}, "two edges for each node, got 1"),
        ({"normal": [["s", 0], ["s"]], "normal_concat": [2]}, "normal, edge 1: expected"),
        ({"normal": [["s", 0], ["s", False]], "normal_concat": [2]}, "normal, edge 1: expected"),
        ({"normal": [["s", 0], ["s", 2]], "normal_concat": [2]}, "normal, node 0: .*reads state 2; it can read 0 to 1"),
        ({"normal": [["s", 0], ["s", -1]], "normal_concat": [2]}, "reads state -1"),
        ({"normal": [[], "s"], "normal_concat": [2]}, "node 1: expected a list of edges"),
        (change("normal", _inputs=3), "normal_inputs: a cell has 1 or 2 inputs, got 3"),
        (change("normal", _inputs=True), "normal_inputs: a cell has 1 or 2 inputs, got True"),
        (change("normal", _inputs=1), "normal, node 0: .*reads state 1; it can read 0 to 0"),
    ],
)
def test_an_impossible_genotype_is_named(document: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Genotype.from_json(document)


def test_validate_names_unknown_operations() -> None:
    def using(operation: str, source: int) -> Genotype:
        return Genotype({"normal": CellGenotype((((operation, source),),), (2,))})

    with pytest.raises(
        UserError, match=r"normal, node 0, edge from state 1: .*'sep_conv_3x4'; did you mean 'sep_conv_3x3'"
    ):
        validate(using("sep_conv_3x4", 1), OPERATIONS)
    with pytest.raises(UserError, match="'none' is no connection; leave the edge out"):
        validate(using("none", 1), OPERATIONS)
    with pytest.raises(UserError, match="reads state 2"):
        validate(using("skip_connect", 2), OPERATIONS)
    for genotype in named_genotypes().values():
        validate(genotype, OPERATIONS)


def reads_or_refuses(text: str) -> None:
    try:
        parse_genotype(text)
    except UserError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 1000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\0",
        "{" * 100_000,
        '{"a":' * 100_000,
        "[" * 100_000,
        "(" * 100_000,
        "-" * 100_000 + "1",
        "a" + ".a" * 100_000,
        "a" + "()" * 100_000,
        "x = Genotype(normal=" + "list(" * 90 + ")" * 90 + ")",
        "x = Genotype(normal=range(1 << 60), normal_concat=[])",
        "x = Genotype(normal=range(1000, 10 ** 9), normal_concat=[])",
        "x = Genotype(normal=range(0, 9, 0), normal_concat=[])",
        f"x = Genotype(normal=[['s', 0x{'f' * 90_000}]], normal_concat=[2])",
        f"x = Genotype(normal=[['s', {'9' * 90_000}]], normal_concat=[2])",
        f'{{"normal": [["s", {"9" * 90_000}]], "normal_concat": [2]}}',
        f'{{"normal": [["s", {"9" * 4_000}], ["s", 0]], "normal_concat": [2]}}',
        "x = Genotype(**y)",
        "x = Genotype([], normal=[])",
        "x = Genotype(1, 2, 3, 4, 5)",
        "'\\d' ; x = Genotype()",
        " " * 1_000_001,
        '{"normal": NaN, "normal_concat": {}}',
        "Genotype(normal=__import__('os').system('true'), normal_concat=[2])",
    ],
)
def test_hostile_texts_are_refused(text: str) -> None:
    with pytest.raises(UserError):
        parse_genotype(text)
    reads_or_refuses(text)


@settings(deadline=None)
@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    reads_or_refuses(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=20,
)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["normal", "normal_concat", "reduce", "reduce_concat", "x", "_concat"]), json_values
    )
)
def test_any_document_is_read_or_refused(document: dict[str, object]) -> None:
    reads_or_refuses(json.dumps(document))
    reads_or_refuses("x = Genotype(" + ", ".join(f"{k}={v!r}" for k, v in document.items()) + ")")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_text_is_read_or_refused(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from([ALIAS, PUBLISHED, json.dumps(load_genotype("DARTS_V1").to_json())]))
    for _ in range(data.draw(st.integers(1, 3))):
        a, b = sorted((data.draw(st.integers(0, len(text))), data.draw(st.integers(0, len(text)))))
        text = text[:a] + data.draw(st.text("[](){},:'\"=0123-*x", max_size=4)) + text[min(b, a + 8) :]
    reads_or_refuses(text)
