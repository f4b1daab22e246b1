"""Drawings of derived cells and chains, as SVG for documents and as PNG for TensorBoard."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator
from functools import lru_cache
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from PIL import Image, ImageDraw

from supernet.report.cell_layout import (
    FONT_SIZE,
    MARGIN,
    CellLayout,
    Curve,
    Point,
    font,
    lay_out,
    text_width,
)
from supernet.report.chain_layout import lay_out_chain
from supernet.report.colours import INK, WHITE, Rgb
from supernet.runtime.files import write_atomic
from supernet.spaces.cell_facts import Placed, placed
from supernet.spaces.chain_genotype import read_chain
from supernet.spaces.genotype import CellGenotype, Genotype

SMALL = 0.75
"""Size of a subscript, of that of its text."""

MARK: Rgb = (213, 94, 0)
ARROW = 7.0
LINE = 1.6
RADIUS = 5.0


def write_drawings(genotype: Genotype, folder: Path) -> None:
    """Write ``<name>.svg`` and ``<name>.png`` for every picture of it, each atomically."""
    for name, (title, layout) in pictures(genotype).items():
        write_atomic(folder / f"{name}.svg", draw_svg(layout, title))
        write_atomic(folder / f"{name}.png", draw_png(layout, title))


def pictures(genotype: Genotype) -> dict[str, tuple[str, CellLayout]]:
    """What there is to draw of a genotype, by name: title and layout of each of its cells, or of a chain."""
    found = {kind: (cell_title(kind), lay_out(cell)) for kind, cell in genotype.cells.items()}
    return found | ({"chain": ("chain", lay_out_chain(read_chain(genotype)))} if genotype.choices else {})


def cell_title(kind: str) -> str:
    """What a cell of this kind is called, where there may be only one kind: "normal cell", "cell", "macro"."""
    return kind if kind in ("cell", "macro") else f"{kind} cell"


def draw_cell_svg(cell: CellGenotype, title: str) -> str:
    """The cell as an SVG document."""
    return draw_svg(lay_out(cell), title)


def draw_svg(layout: CellLayout, title: str) -> str:
    """A layout as an SVG document, without references to anything outside of it."""
    width = _width(layout, title)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {layout.height:.0f}" '
        f'width="{width:.0f}" height="{layout.height:.0f}" role="img" aria-label={quoteattr(_plain(title))} '
        f'font-family="Helvetica, Arial, sans-serif" font-size="{FONT_SIZE}">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        _svg_text(MARGIN, MARGIN + FONT_SIZE / 2, title, INK, "start"),
    ]
    for curve in layout.curves:
        (x, y), *rest = _shortened(curve)
        path = f"M{x:.1f} {y:.1f}" + "".join(f" C{_pairs(rest[i : i + 3])}" for i in range(0, len(rest), 3))
        parts.append(f'<path d="{path}" fill="none" stroke="{_hex(curve.colour)}" stroke-width="{LINE}"/>')
        parts.append(f'<polygon points="{_pairs(_arrow(curve))}" fill="{_hex(curve.colour)}"/>')
    for box in layout.boxes:
        parts.append(
            f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="{RADIUS}" '
            f'fill="{_hex(box.fill)}" stroke="{_hex(box.border)}" stroke-width="1.2"/>'
        )
        x, y = box.x + box.width / 2, box.y + box.height / 2
        if box.subscript:
            full, small = text_width(box.text), text_width(box.subscript, FONT_SIZE * SMALL)
            start = x - (full + small) / 2
            parts.append(_svg_text(start, y, box.text, INK, "start"))
            parts.append(_svg_text(start + full, y + 4, box.subscript, INK, "start", FONT_SIZE * SMALL))
        else:
            parts.append(_svg_text(x, y, box.text, INK, "middle"))
    return "\n".join([*parts, "</svg>\n"])


def draw_cell_png(cell: CellGenotype, title: str, scale: int = 2) -> bytes:
    """The cell as a PNG of ``scale`` pixels for one of the SVG."""
    return draw_png(lay_out(cell), title, scale)


@lru_cache(maxsize=8)  # a search draws the same cell epoch after epoch
def draw_png(layout: CellLayout, title: str, scale: int = 2, framed: tuple[int, ...] = ()) -> bytes:
    """A layout as a PNG of ``scale`` pixels for one of the SVG; the boxes of these numbers get a frame."""
    return to_png(_paint(layout, title, scale, framed))


def boxes_of(cell: CellGenotype, edges: Collection[Placed]) -> tuple[int, ...]:
    """The numbers of the boxes of some edges: those of the states come first."""
    drawn = [edge for edge in placed(cell) if edge[1] != "none"]
    return tuple(cell.inputs + len(cell.nodes) + 1 + i for i, edge in enumerate(drawn) if edge in edges)


def to_png(image: Image.Image) -> bytes:
    """A flat drawing as a PNG with a palette: a third of the bytes of one in full colour, in a third of the time."""
    stream = io.BytesIO()
    image.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(stream, "PNG")
    return stream.getvalue()


def _paint(layout: CellLayout, title: str, scale: int, framed: tuple[int, ...]) -> Image.Image:
    """Lines are drawn at twice the size, since Pillow does not smooth them."""
    size = round(_width(layout, title)) * scale, round(layout.height) * scale
    fine = 2 * scale
    image = Image.new("RGB", (2 * size[0], 2 * size[1]), WHITE)
    draw = ImageDraw.Draw(image)
    for curve in layout.curves:
        points = [(x * fine, y * fine) for x, y in _polyline(_shortened(curve))]
        draw.line(points, curve.colour, round(LINE * fine), joint="curve")
        draw.polygon([(x * fine, y * fine) for x, y in _arrow(curve)], curve.colour)
    for box in layout.boxes:
        corners = (box.x * fine, box.y * fine, (box.x + box.width) * fine, (box.y + box.height) * fine)
        draw.rounded_rectangle(corners, RADIUS * fine, box.fill, box.border, round(1.2 * fine))
    for box in (layout.boxes[number] for number in framed):
        corners = (box.x - 3, box.y - 3, box.x + box.width + 3, box.y + box.height + 3)
        draw.rounded_rectangle(tuple(c * fine for c in corners), RADIUS * fine, None, MARK, round(2.5 * fine))
    image = image.reduce(2)
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN * scale, (MARGIN + FONT_SIZE / 2) * scale), title, INK, font(FONT_SIZE * scale), "lm")
    for box in layout.boxes:
        x, y = (box.x + box.width / 2) * scale, (box.y + box.height / 2) * scale
        if box.subscript:
            full = text_width(box.text) * scale
            start = x - (full + text_width(box.subscript, FONT_SIZE * SMALL) * scale) / 2
            draw.text((start, y), box.text, INK, font(FONT_SIZE * scale), "lm")
            draw.text((start + full, y + 4 * scale), box.subscript, INK, font(FONT_SIZE * SMALL * scale), "lm")
        else:
            draw.text((x, y), box.text, INK, font(FONT_SIZE * scale), "mm")
    return image


def _width(layout: CellLayout, title: str) -> float:
    return max(layout.width, text_width(title) + 2 * MARGIN)


def _shortened(curve: Curve) -> list[Point]:
    """The curve up to the back of its arrow head."""
    *points, (x, y) = curve.points
    return [*points, (x - ARROW + 1, y)]


def _arrow(curve: Curve) -> list[Point]:
    x, y = curve.points[-1]
    return [(x, y), (x - ARROW, y - ARROW / 2), (x - ARROW, y + ARROW / 2)]


def _polyline(points: list[Point], pieces: int = 16) -> Iterator[Point]:
    yield points[0]
    for i in range(0, len(points) - 1, 3):
        (ax, ay), (bx, by), (cx, cy), (dx, dy) = points[i : i + 4]
        for step in range(1, pieces + 1):
            t = step / pieces
            u = 1 - t
            a, b, c, d = u * u * u, 3 * u * u * t, 3 * u * t * t, t * t * t
            yield a * ax + b * bx + c * cx + d * dx, a * ay + b * by + c * cy + d * dy


def _svg_text(x: float, y: float, text: str, colour: Rgb, anchor: str, size: float = FONT_SIZE) -> str:
    """``textLength`` holds a text to the width it was laid out for, whatever font the reader has."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" dy=".35em" text-anchor="{anchor}" font-size="{size:g}" fill="{_hex(colour)}" '
        f'textLength="{text_width(text, size):.1f}" lengthAdjust="spacingAndGlyphs">{escape(_plain(text))}</text>'
    )


def _plain(text: str) -> str:
    """Without characters that XML cannot hold."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def _pairs(points: list[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _hex(colour: Rgb) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
