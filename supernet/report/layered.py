"""A layered drawing of a small graph in the manner of Sugiyama: which item stands above which, and at what height.

Every link leads from one column to the next, so that a long edge is a chain of items; items of a column keep their
distance. Hence nothing that has a height of its own can be crossed, and no two texts can overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise

Links = list[tuple[int, int]]
"""(item, item of the next column)"""

SWEEPS = 12
MAX_ITEMS = 400
"""Larger graphs keep their first order: untangling takes time that grows with the square of the items."""


def order_columns(columns: list[list[int]], links: Links) -> list[list[int]]:
    """Order the items of each column so that few links cross; columns that are not named first keep theirs if equal."""
    if sum(map(len, columns)) > MAX_ITEMS:
        return columns
    before, after = _neighbours(links)
    best, fewest = columns, _crossings(columns, links)
    current = [list(column) for column in columns]
    for sweep in range(SWEEPS):
        forward = sweep % 2 == 0
        order = range(1, len(current)) if forward else range(len(current) - 2, -1, -1)
        for c in order:
            rank = {item: i for i, item in enumerate(current[c - 1 if forward else c + 1])}
            own = {item: i for i, item in enumerate(current[c])}
            near = before if forward else after
            current[c].sort(key=lambda item: _mean([rank[i] for i in near.get(item, [])], own[item]))
        current = _swap_neighbours(current, links)
        crossings = _crossings(current, links)
        if crossings < fewest:
            best, fewest = [list(column) for column in current], crossings
    return best


def heights(columns: Sequence[Sequence[int]], links: Links, size: dict[int, float], gap: float) -> dict[int, float]:
    """The middle of every item, so that links are nearly straight and neighbours stay ``gap`` apart."""
    before, after = _neighbours(links)
    y: dict[int, float] = {}
    for column in columns:
        total = sum(size[item] + gap for item in column)
        top = -total / 2
        for item in column:
            y[item] = top + (size[item] + gap) / 2
            top += size[item] + gap
    for sweep in range(2 * SWEEPS):
        for column in filter(None, columns if sweep % 2 == 0 else reversed(columns)):
            wish = [_mean([y[i] for i in before.get(item, []) + after.get(item, [])], y[item]) for item in column]
            room = [(size[a] + size[b]) / 2 + gap for a, b in pairwise(column)]
            y |= zip(column, _keep_apart(wish, room), strict=True)
    return y


def _keep_apart(wish: Sequence[float], room: Sequence[float]) -> list[float]:
    """The heights nearest to ``wish`` (least squares) with ``room[i]`` between i and i + 1: pool adjacent violators."""
    offset = [0.0]
    for each in room:
        offset.append(offset[-1] + each)
    blocks: list[tuple[float, int]] = []
    for w, o in zip(wish, offset, strict=True):
        mean, count = w - o, 1
        while blocks and blocks[-1][0] > mean:
            other, n = blocks.pop()
            mean, count = (mean * count + other * n) / (count + n), count + n
        blocks.append((mean, count))
    means = [mean for mean, count in blocks for _ in range(count)]
    return [m + o for m, o in zip(means, offset, strict=True)]


def _swap_neighbours(columns: list[list[int]], links: Links) -> list[list[int]]:
    """Exchange items that stand next to each other wherever that removes crossings."""
    before, after = _neighbours(links)
    for c, column in enumerate(columns):
        left = {item: i for i, item in enumerate(columns[c - 1])} if c else {}
        right = {item: i for i, item in enumerate(columns[c + 1])} if c + 1 < len(columns) else {}
        for i in range(len(column) - 1):
            a, b = column[i], column[i + 1]
            now = swapped = 0
            for near, rank in ((before, left), (after, right)):
                pairs = [(rank[m], rank[n]) for m in near.get(a, []) for n in near.get(b, [])]
                now += sum(m > n for m, n in pairs)
                swapped += sum(m < n for m, n in pairs)
            if swapped < now:
                column[i], column[i + 1] = b, a
    return columns


def _neighbours(links: Links) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    before: dict[int, list[int]] = {}
    after: dict[int, list[int]] = {}
    for a, b in links:
        after.setdefault(a, []).append(b)
        before.setdefault(b, []).append(a)
    return before, after


def _crossings(columns: Sequence[Sequence[int]], links: Links) -> int:
    place = {item: (c, i) for c, column in enumerate(columns) for i, item in enumerate(column)}
    by_column: dict[int, list[tuple[int, int]]] = {}
    for a, b in links:
        by_column.setdefault(place[a][0], []).append((place[a][1], place[b][1]))
    return sum((a - c) * (b - d) < 0 for found in by_column.values() for (a, b), (c, d) in combinations(found, 2))


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise
