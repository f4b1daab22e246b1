"""Where everything of a chain's drawing stands, in pixels of the SVG: a column of choices for every layer."""

from __future__ import annotations

from collections.abc import Sequence

from supernet.report.cell_layout import (
    INPUT,
    LABEL_HEIGHT,
    MARGIN,
    NODE,
    OUTPUT,
    STATE_HEIGHT,
    TITLE,
    Box,
    CellLayout,
    Curve,
    Point,
    text_width,
)
from supernet.report.colours import INK, PALE, Rgb, blend, colour_of
from supernet.spaces.chain_genotype import Stage
from supernet.spaces.chain_options import RESIDUAL

GAP, BETWEEN, ARC = 34.0, 4.0, 18.0
Column = tuple[list[tuple[str, Rgb]], bool, Rgb]
"""What stands in a column, each with its colour; whether a residual connection goes past it; the fill of its head."""


def lay_out_chain(stages: Sequence[Stage]) -> CellLayout:
    """From left to right, joined by arrows: the image, each layer's choices below one another, the classifier. A stage
    after the first begins with its pool; an arc is a residual connection."""
    columns = _columns(stages)
    head = MARGIN + TITLE + ARC
    boxes, curves = [], []
    x, before, arc_from = MARGIN, None, None
    for texts, residual, fill in columns:
        width = max(text_width(text) for text, _ in texts) + 14
        entry: Point = (x, head + STATE_HEIGHT / 2)
        if before is not None:
            curves.append(Curve((before, *_level(before, entry)), PALE))
        if arc_from is not None:
            curves.append(_arc(arc_from, entry, head))
        arc_from = before if residual else None
        boxes += _stacked(texts, x, head, width, fill)
        before = (x + width, entry[1])
        x += width + GAP
    rows = max(len(texts) for texts, _, _ in columns)
    bottom = head + STATE_HEIGHT + (rows - 1) * (LABEL_HEIGHT + BETWEEN) + MARGIN
    return CellLayout(x - GAP + MARGIN, bottom, tuple(boxes), tuple(curves))


def _columns(stages: Sequence[Stage]) -> list[Column]:
    columns: list[Column] = [([("image", INK)], False, INPUT)]
    for stage in stages:
        for i, layer in enumerate(stage.layers):
            pooled = stage.pool is not None and i == 0
            words = [layer.activation, layer.init, *([f"{stage.pool} / 2"] if pooled else [])]
            texts = [(f"{layer.kernel}x{layer.kernel}, {layer.width:g} C", INK)]
            columns.append((texts + [(word, colour_of(word)) for word in words], layer.connection == RESIDUAL, NODE))
    return [*columns, ([("classes", INK)], False, OUTPUT)]


def _stacked(texts: Sequence[tuple[str, Rgb]], x: float, top: float, width: float, fill: Rgb) -> list[Box]:
    (first, ink), *rest = texts
    boxes = [Box(x, top, width, STATE_HEIGHT, first, "", fill, ink)]
    for row, (text, colour) in enumerate(rest):
        y = top + STATE_HEIGHT + BETWEEN + row * (LABEL_HEIGHT + BETWEEN)
        boxes.append(Box(x, y, width, LABEL_HEIGHT, text, "", blend(colour, 0.12), colour))
    return boxes


def _arc(start: Point, end: Point, head: float) -> Curve:
    """From before a column over it to the one behind."""
    top, third = head - ARC / 2, GAP / 2
    left, right = (start[0] + third, top), (end[0] - third - 4.0, top)
    points = [start, (start[0] + third / 2, start[1]), (start[0] + third / 2, top), left]
    points += _level(left, right)
    points += [(end[0] - third / 2 - 4.0, top), (end[0] - third / 2 - 4.0, end[1] - 6.0), (end[0], end[1] - 6.0)]
    return Curve(tuple(points), colour_of("skip_connect"))


def _level(a: Point, b: Point) -> list[Point]:
    half = (a[0] + b[0]) / 2
    return [(half, a[1]), (half, b[1]), b]
