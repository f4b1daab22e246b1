"""How p is watched: a heat map, a curve per operation and edge, entropy, skips, and the cell as it stands."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from supernet.report.cell_layout import font, text_width
from supernet.report.colours import INK, WHITE, blend, colour_of, ink_on
from supernet.report.drawing import draw_cell_png
from supernet.report.recorder import Recorder
from supernet.spaces.genotype import Genotype
from supernet.types import Group, Mixing

ROW, COLUMN, HEADER = 22, 64, 96
SKIP = "skip_connect"


def log_search(
    recorder: Recorder, groups: Sequence[Group], p: Mixing, genotype: Genotype, *, epoch: int, step: int
) -> None:
    """Record p and the derived cell of every group; p is averaged over placements."""
    recorder.layout("search", layout(groups))
    values: dict[str, float] = {}
    for group in groups:
        op_LNK = p[group.name].op_LNK
        values[f"entropy/{group.name}"] = entropy(op_LNK)
        cell = genotype.cells[group.name]
        values[f"skips/{group.name}"] = float(sum(op == SKIP for op, _ in cell.edges))
        rows_NK = op_LNK.mean(dim=0).tolist()
        for n, row in enumerate(rows_NK):
            for name, share in zip(group.options, row, strict=True):
                values[f"p_{group.name}/{edge_tag(group, n)}/{name}"] = share
        recorder.image("search", f"p/{group.name}", heat_map(group, rows_NK), step)
        drawing = draw_cell_png(cell, f"{group.name} cell, epoch {epoch + 1}")
        recorder.image("search", f"cell/{group.name}", np.asarray(Image.open(io.BytesIO(drawing)).convert("RGB")), step)
    recorder.text("search", "genotype", f"```\n{genotype}\n```", step)
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
    return f"{group.targets[n]}_from_{group.sources[n]}"


def entropy(p_LNK: Tensor) -> float:
    """Mean over decisions of - sum over k of p_k ln p_k, in nats; ln K where nothing is decided, 0 where all is."""
    return float(-p_LNK.xlogy(p_LNK).sum(dim=-1).mean())


def heat_map(group: Group, rows_NK: Sequence[Sequence[float]]) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    """p over edges (rows) and operations (columns) as an image, uint8 HWC: the fuller the colour, the larger the
    share."""
    left = round(max(text_width(group.label(n)) for n in range(group.decisions))) + 16
    image = Image.new("RGB", (left + COLUMN * len(group.options) + 8, HEADER + ROW * group.decisions + 8), WHITE)
    pen = ImageDraw.Draw(image)
    for k, name in enumerate(group.options):
        _vertical(image, name, left + k * COLUMN + COLUMN // 2)
    for n, row in enumerate(rows_NK):
        top = HEADER + n * ROW
        pen.text((left - 8, top + ROW / 2), group.label(n), fill=INK, font=font(13), anchor="rm")
        for k, (name, share) in enumerate(zip(group.options, row, strict=True)):
            box = (left + k * COLUMN, top, left + (k + 1) * COLUMN - 2, top + ROW - 2)
            if not group.mask_NK[n][k]:
                continue
            shade = blend(colour_of(name), min(max(share, 0.0), 1.0))
            pen.rectangle(box, fill=shade)
            middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
            pen.text(middle, f"{share:.2f}", fill=ink_on(shade), font=font(11), anchor="mm")
    return np.asarray(image)


def _vertical(image: Image.Image, text: str, middle: int) -> None:
    """Write a column's name upwards, ending above the first row."""
    width = round(text_width(text)) + 2
    strip = Image.new("RGB", (width, 18), WHITE)
    ImageDraw.Draw(strip).text((0, 9), text, fill=INK, font=font(13), anchor="lm")
    turned = strip.rotate(90, expand=True)
    image.paste(turned, (middle - 9, HEADER - 4 - turned.height))
