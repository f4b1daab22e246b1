"""Plots for people, by matplotlib where it is installed (``pip install 'supernet[compare]'``)."""

from __future__ import annotations

import functools
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

COLOURS = ("#999999", "#0072B2", "#D55E00", "#009E73")
"""Of Okabe and Ito, which colour-blind people can tell apart."""


@functools.cache  # said once, and not for every picture
def _figure() -> Callable[..., Any] | None:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        logging.getLogger(__name__).warning("no plot: matplotlib is missing; pip install 'supernet[compare]'")
        return None
    return Figure


def scatter(points: Mapping[str, Sequence[tuple[float, float]]], *, x: str, y: str, title: str = "") -> bytes | None:
    """A PNG of sets of points by name; None, with a warning, where matplotlib is missing."""
    new_figure = _figure()
    if new_figure is None:
        return None
    figure = new_figure(figsize=(6.0, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel=x, ylabel=y, title=title)
    for (name, pairs), colour in zip(points.items(), COLOURS, strict=False):
        if pairs:
            axes.scatter([p[0] for p in pairs], [p[1] for p in pairs], s=16, color=colour, label=name, alpha=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    if len(points) > 1:
        axes.legend(frameon=False)
    buffer = io.BytesIO()
    # Without the name of the version, the same points are the same file.
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()
