"""What a genotype says of a chain: ``{"depth/1": "2", "width/1.1": "0.5", "kernel/1.1": "3", ..., "pool/2": "max"}``.

Stages and layers count from 1; only the layers that there are have choices, so equal chains are equal genotypes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from supernet.errors import UserError
from supernet.schema.spaces import MAX_DEPTH, MAX_KERNEL, MAX_WIDTH
from supernet.spaces.chain_options import ACTIVATIONS, CONNECTIONS, INITS, POOLS
from supernet.spaces.genotype import Genotype

MAX_STAGES = 16

LAYER_KINDS = ("width", "kernel", "activation", "init", "connection")
"""What is chosen for a layer, in the order in which it is written."""

WORDS: dict[str, Sequence[str]] = {
    "activation": tuple(ACTIVATIONS),
    "init": tuple(INITS),
    "connection": CONNECTIONS,
    "pool": POOLS,
}
"""The choices that are words."""


@dataclass(frozen=True)
class Layer:
    """One layer. ``width`` is a multiple of the channels of its stage."""

    width: float
    kernel: int
    activation: str
    init: str
    connection: str


@dataclass(frozen=True)
class Stage:
    """Some layers; ``pool`` says how the image is halved before them, and is None in the first stage."""

    pool: str | None
    layers: tuple[Layer, ...]


def write_chain(stages: Sequence[Stage]) -> Genotype:
    """The genotype of a chain."""
    choices = {}
    for s, stage in enumerate(stages, start=1):
        choices[f"depth/{s}"] = str(len(stage.layers))
        choices |= {} if stage.pool is None else {f"pool/{s}": stage.pool}
        for i, layer in enumerate(stage.layers, start=1):
            choices[f"width/{s}.{i}"] = f"{layer.width:g}"
            choices |= {f"{kind}/{s}.{i}": str(getattr(layer, kind)) for kind in LAYER_KINDS[1:]}
    return Genotype({}, choices)


def read_chain(genotype: Genotype, where: str = "genotype") -> tuple[Stage, ...]:
    """Undo :func:`write_chain`. Raises UserError, beginning with ``where``, for what it cannot have written."""
    if genotype.cells or not genotype.choices:
        raise UserError(f"{where}: it is no chain, which is written choices={{'depth/1': '2', ...}} and has no cells")
    given = dict(genotype.choices)
    stages: list[Stage] = []
    while not stages or (given and len(stages) < MAX_STAGES and f"depth/{len(stages) + 1}" in given):
        s = len(stages) + 1
        depth = _whole(given, f"depth/{s}", MAX_DEPTH, where)
        pool = _word(given, f"pool/{s}", "pool", where) if s > 1 else None
        stages.append(Stage(pool, tuple(_layer(given, f"{s}.{i}", where) for i in range(1, depth + 1))))
    if given:
        key = min(given)
        raise UserError(f"{where}: {key[:40]!r} is none of the choices of its {len(stages)} stages; leave it out")
    return tuple(stages)


def _layer(given: dict[str, str], place: str, where: str) -> Layer:
    kernel = _whole(given, f"kernel/{place}", MAX_KERNEL, where)
    if kernel % 2 == 0:
        raise UserError(f"{where}: kernel/{place}={kernel}: a kernel has an odd size, 1 to {MAX_KERNEL}")
    words = {kind: _word(given, f"{kind}/{place}", kind, where) for kind in ("activation", "init", "connection")}
    return Layer(_width(given, f"width/{place}", where), kernel, **words)


def _take(given: dict[str, str], key: str, where: str) -> str:
    if key not in given:
        raise UserError(f"{where}: the choice {key} is missing; a chain has one for each of its stages and layers")
    return given.pop(key)


def _whole(given: dict[str, str], key: str, most: int, where: str) -> int:
    text = _take(given, key, where)
    if re.fullmatch(r"[1-9][0-9]{0,3}", text, re.ASCII) is None or int(text) > most:
        raise UserError(f"{where}: {key}={text[:40]!r}: it must be a whole number from 1 to {most}")
    return int(text)


def _width(given: dict[str, str], key: str, where: str) -> float:
    text = _take(given, key, where)
    plain = re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,5})?", text, re.ASCII) is not None
    if not plain or not 0 < float(text) <= MAX_WIDTH or f"{float(text):g}" != text:
        raise UserError(
            f"{where}: {key}={text[:40]!r}: it must be a number such as 0.5, above 0, at most {MAX_WIDTH:g}"
        )
    return float(text)


def _word(given: dict[str, str], key: str, kind: str, where: str) -> str:
    text = _take(given, key, where)
    if text not in WORDS[kind]:
        raise UserError(f"{where}: {key}={text[:40]!r} is not known", valid=WORDS[kind], got=text)
    return text


def agreeing(found: Mapping[str, set[object]]) -> None:
    """Refuse layers that share a decision and differ in it."""
    for name, values in found.items():
        if len(values) > 1:
            several = " and ".join(sorted(map(str, values)))
            raise UserError(f"genotype: {name} is {several}, and space.scope makes it one decision")
