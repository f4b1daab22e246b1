"""How p is watched: a heat map, a curve per operation and edge, entropy, skips, and the cell as it stands."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from PIL import Image, ImageDraw
from torch import Tensor

from supernet.report.cell_layout import font, text_width
from supernet.report.colours import INK, WHITE, blend, colour_of, ink_on
from supernet.report.drawing import draw_png, pictures, to_png
from supernet.report.recorder import Recorder
from supernet.spaces.genotype import Genotype
from supernet.types import Group, Mixing

ROW, COLUMN, TITLE = 22, 37, 40
"""Pixels. TensorBoard shrinks pictures wider than 350, without smoothing; a heat map of eight operations is not."""

WRAP = 90
"""Characters. TensorBoard cuts longer lines of text."""

SKIP = "skip_connect"


def log_search(
    recorder: Recorder, groups: Sequence[Group], p: Mixing, genotype: Genotype, *, epoch: int, step: int
) -> None:
    """Record p of every group, averaged over placements, and the derived architecture."""
    recorder.layout("search", layout(groups))
    recorder.history.describe(groups)
    recorder.history.derived("search", epoch, step, p, genotype)
    values: dict[str, float] = {}
    for group in groups:
        op_LNK = p[group.name].op_LNK
        values[f"entropy/{group.name}"] = entropy(op_LNK)
        rows_NK = op_LNK.mean(dim=0).tolist()
        for n, row in enumerate(rows_NK):
            for name, share in zip(group.options, row, strict=True):
                values[f"p_{group.name}/{edge_tag(group, n)}/{name}"] = share
        recorder.image("search", f"p/{group.name}", heat_map_png(group, rows_NK, f"epoch {epoch + 1}"), step)
    for kind, cell in genotype.cells.items():
        values[f"skips/{kind}"] = float(sum(op == SKIP for op, _ in cell.edges))
    for name, (title, drawing) in pictures(genotype).items():
        recorder.image("search", f"cell/{name}", draw_png(drawing, title, scale=1), step)
    recorder.text("search", "genotype", "```\n" + "\n".join(textwrap.wrap(str(genotype), WRAP)) + "\n```", step)
    recorder.scalars("search", values, step=step, epoch=epoch)


def layout(groups: Sequence[Group]) -> dict[str, dict[str, list[Any]]]:
    """The custom-scalars tab: one chart per edge, with a curve per operation; before them what tells a collapse."""
    watch: dict[str, list[Any]] = {
        "entropy": ["Multiline", ["entropy/.*"]],
        "skip connections": ["Multiline", ["skips/.*"]],
    }
    edges: dict[str, dict[str, list[Any]]] = {
        group.name: {
            group.label(n): ["Multiline", [f"p_{group.name}/{edge_tag(group, n)}/.*"]] for n in range(group.decisions)
        }
        for group in groups
    }
    return {"collapse": watch, **edges}


def edge_tag(group: Group, n: int) -> str:
    """Decision n in the letters that a TensorBoard tag may have."""
    return group.names[n] if group.names else f"{group.targets[n]}_from_{group.sources[n]}"


def entropy(p_LNK: Tensor) -> float:
    """Mean over decisions of - sum over k of p_k ln p_k, in nats; ln K where nothing is decided, 0 where all is."""
    return float(-p_LNK.xlogy(p_LNK).sum(dim=-1).mean())


def heat_map_png(group: Group, rows_NK: Sequence[Sequence[float]], title: str) -> bytes:
    """p over edges (rows) and operations (columns) as a PNG.

    A cell's colour is its operation's, as in drawings of cells; its strength is the square root of p, on a fixed scale,
    so that epochs compare and differences near 1 / K show. Options that do not exist stay white.
    """
    header = round(max(map(text_width, group.options))) + TITLE
    left = round(max(text_width(group.label(n)) for n in range(group.decisions))) + 12
    image = Image.new("RGB", (left + COLUMN * len(group.options) + 4, header + ROW * group.decisions + 8), WHITE)
    pen = ImageDraw.Draw(image)
    pen.text((8, 8), f"{group.name}: p, {title}", fill=INK, font=font(13))
    for k, name in enumerate(group.options):
        _vertical(image, name, left + k * COLUMN + COLUMN // 2, header - 6)
    for n, row in enumerate(rows_NK):
        top = header + n * ROW
        pen.text((left - 6, top + ROW / 2), group.label(n), fill=INK, font=font(13), anchor="rm")
        for k in (k for k, exists in enumerate(group.mask_NK[n]) if exists):
            x, share = left + k * COLUMN, row[k]
            shade = blend(colour_of(group.options[k]), math.sqrt(min(max(share, 0.0), 1.0)))
            pen.rectangle((x, top, x + COLUMN - 2, top + ROW - 2), fill=shade)
            pen.bitmap((x, top), _number(f"{share:.2f}"), fill=ink_on(shade))
    return to_png(image)


@lru_cache(maxsize=128)  # setting the same hundred numbers anew takes most of the time of a heat map
def _number(text: str) -> Image.Image:
    """A number as a mask of the size of a cell."""
    mask = Image.new("L", (COLUMN - 2, ROW - 2))
    ImageDraw.Draw(mask).text((COLUMN / 2 - 1, ROW / 2 - 1), text, fill=255, font=font(12), anchor="mm")
    return mask


def _vertical(image: Image.Image, text: str, middle: int, bottom: int) -> None:
    """Write a column's name upwards, beginning above the first row."""
    strip = Image.new("RGB", (round(text_width(text)) + 2, 18), WHITE)
    ImageDraw.Draw(strip).text((0, 9), text, fill=INK, font=font(13), anchor="lm")
    turned = strip.rotate(90, expand=True)
    image.paste(turned, (middle - 9, bottom - turned.height))
