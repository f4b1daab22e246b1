"""How p went: for every edge a river whose width at an epoch is p, coloured by operation; and how sure each edge is.

Drawn by numpy and Pillow, in milliseconds, from the history alone; at most 350 pixels wide, which TensorBoard shows as
they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from supernet.report.cell_layout import font, text_width
from supernet.report.colours import INK, PALE, WHITE, Rgb, blend, colour_of
from supernet.report.drawing import to_png
from supernet.report.history import Layout, Row
from supernet.spaces.cell_facts import SKIP, learns, placed
from supernet.spaces.ops import OPERATIONS

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

WIDTH, PANEL_WIDTH, RIVER, STRIP, LABEL, GAP = 350, 160, 48, 5, 18, 10
"""Pixels. The strip below a river shows what the derived cell has there; it is white where it has nothing."""

CERTAIN: Rgb = (0, 82, 147)
EMPTY: Rgb = (241, 243, 245)


def stacked(options: Sequence[str]) -> list[str]:
    """From the ground up: skips, what else has no weights, what has; so a collapse is what rises from below."""

    def weighted(name: str) -> bool:
        return name not in OPERATIONS or learns(name)  # a width, say, is no operation

    return sorted(options, key=lambda name: (name != SKIP, weighted(name), name == "none", options.index(name)))


def rivers_png(group: Layout, name: str, rows: Sequence[Row], epochs: int) -> bytes:
    """p of every edge over the epochs so far; ``rows`` have a p of this group, and the search has ``epochs``."""
    order = stacked(group.options)
    top = LABEL + 6 + LABEL * math.ceil(len(order) / 2)
    lines = math.ceil(len(group.edges) / 2)
    image = Image.new("RGB", (WIDTH, top + lines * (LABEL + RIVER + STRIP + GAP) + 4), WHITE)
    pen = ImageDraw.Draw(image)
    pen.text((8, 4), f"{name}: p, epoch 1 to {rows[-1].epoch + 1} of {epochs}", INK, font(13))
    for i, option in enumerate(order):
        x, y = 8 + (i % 2) * (PANEL_WIDTH + 14), LABEL + 6 + LABEL * (i // 2)
        pen.rectangle((x, y + 3, x + 11, y + 14), colour_of(option))
        pen.text((x + 17, y + 1), option, INK, font(12))
    for n, label in enumerate(group.labels):
        x, y = 8 + (n % 2) * (PANEL_WIDTH + 14), top + (n // 2) * (LABEL + RIVER + STRIP + GAP)
        last = {o: s for o, s in zip(group.options, rows[-1].p[name][n], strict=True) if s is not None}
        lead = max(last, key=last.__getitem__, default="")
        pen.text((x, y + 2), label, INK, font(12))
        pen.text((x + PANEL_WIDTH, y + 2), f"{lead} {last.get(lead, 0):.2f}", INK, font(11), "ra")
        image.paste(Image.fromarray(_river(group, name, n, rows, epochs, order)), (x, y + LABEL))
    return to_png(image)


def _river(group: Layout, name: str, n: int, rows: Sequence[Row], epochs: int, order: Sequence[str]) -> Pixels:
    """The river of an edge with the strip below it, as pixels (rows, columns, colours)."""
    ends = np.zeros((epochs, len(order)))
    strip = np.full((epochs, 3), 255, np.uint8)
    for row in rows:
        shares = dict(zip(group.options, row.p[name][n], strict=True))
        listed = np.array([shares[option] or 0.0 for option in order])
        ends[row.epoch] = np.cumsum(listed) / max(listed.sum(), 1e-9)
        strip[row.epoch] = _chosen(group, name, n, row)
    colours = np.array([*map(colour_of, order), EMPTY], np.uint8)
    heights = 1 - (np.arange(RIVER) + 0.5) / RIVER
    index = (ends[None] < heights[:, None, None]).sum(axis=-1)  # an epoch that is to come is empty
    columns = np.arange(PANEL_WIDTH) * epochs // PANEL_WIDTH
    apart = np.full((2, epochs, 3), 255, np.uint8)
    pixels = np.concatenate([colours[index], apart, np.repeat(strip[None], STRIP, axis=0)])[:, columns]
    return np.ascontiguousarray(pixels)


def _chosen(group: Layout, name: str, n: int, row: Row) -> Rgb:
    cell = None if row.genotype is None else row.genotype.cells.get(name)
    if cell is None:
        return WHITE
    source, target = group.edges[n]
    found = [op for node, op, origin in placed(cell) if (node + cell.inputs, origin) == (target, source)]
    return colour_of(found[0]) if found else WHITE


def certainty_png(group: Layout, name: str, rows: Sequence[Row], epochs: int) -> bytes:
    """Entropy of p (share of its largest value) and margin of the best option, per edge and epoch; dark is certain."""
    tables = {"entropy left": _map(entropy_left, name, rows), "margin of the best": _map(margin, name, rows)}
    left, panel, line = max(round(max(map(text_width, group.labels))) + 10, 34), 112, 14
    image = Image.new("RGB", (WIDTH, LABEL * 2 + line * len(group.edges) + 14), WHITE)
    pen = ImageDraw.Draw(image)
    pen.text((8, 4), f"{name}: how sure, epoch 1 to {rows[-1].epoch + 1} of {epochs}", INK, font(13))
    top = 2 * LABEL + 6
    for n, label in enumerate(group.labels):
        pen.text((left - 6, top + line * (n + 0.5)), label, INK, font(11), "rm")
    for i, (title, values) in enumerate(tables.items()):
        x = left + i * (panel + 42)
        pen.text((x, LABEL + 6), title, INK, font(11))
        pen.rectangle((x, top, x + panel - 1, top + line * len(group.edges) - 2), EMPTY)
        for e, row in enumerate(rows):
            x0, x1 = x + row.epoch * panel // epochs, x + (row.epoch + 1) * panel // epochs
            for n, value in enumerate(values[e]):
                dark = value if i else 1 - value
                box = (x0, top + n * line, max(x1 - 1, x0), top + (n + 1) * line - 2)
                pen.rectangle(box, blend(CERTAIN, 0.06 + 0.94 * min(max(dark, 0.0), 1.0)))
        for n, value in enumerate(values[-1]):
            pen.text((x + panel + 4, top + line * (n + 0.5)), f"{value:.2f}", INK, font(11), "lm")
    pen.line((left, top - 1, WIDTH - 8, top - 1), PALE)
    return to_png(image)


def _map(function: Any, name: str, rows: Sequence[Row]) -> list[list[float]]:
    return [[function([s for s in line if s is not None]) for line in row.p[name]] for row in rows]


def entropy_left(shares: Sequence[float]) -> float:
    """Entropy of the normalised shares over that of equal ones: 1 where nothing is decided, 0 where all is."""
    total = sum(shares)
    if len(shares) < 2 or total <= 0:
        return 0.0
    return -sum(s / total * math.log(s / total) for s in shares if s > 0) / math.log(len(shares))


def margin(shares: Sequence[float]) -> float:
    """The largest share less the second largest."""
    if len(shares) < 2:
        return 1.0
    second, first = sorted(shares)[-2:]
    return first - second
