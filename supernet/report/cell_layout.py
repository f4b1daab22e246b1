"""Where everything of a cell's drawing stands: shared by the SVG and the PNG, in pixels of the SVG."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from PIL import ImageFont

from supernet.report.colours import INK, PALE, Rgb, blend, colour_of
from supernet.report.layered import Links, heights, order_columns
from supernet.spaces.genotype import CellGenotype

FONT_SIZE = 13
GAP_X, GAP_Y, MARGIN, TITLE = 36.0, 12.0, 16.0, 24.0
STATE_WIDTH, STATE_HEIGHT, LABEL_HEIGHT, PASS_HEIGHT, PORT = 46.0, 34.0, 24.0, 2.0, 9.0
INPUT, NODE, OUTPUT = blend(colour_of("dil_conv_3x3"), 0.25), blend(colour_of("sep_conv_3x3"), 0.25), (253, 236, 200)

Point = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """A state (``subscript`` set below its text) or the name of an operation; x and y are the upper left corner."""

    x: float
    y: float
    width: float
    height: float
    text: str
    subscript: str
    fill: Rgb
    border: Rgb


@dataclass(frozen=True)
class Curve:
    """Cubic Bezier pieces, ``points`` = start, then control, control, end for each; with an arrow head at its end."""

    points: tuple[Point, ...]
    colour: Rgb


@dataclass(frozen=True)
class CellLayout:
    """A drawing: curves first, boxes over them."""

    width: float
    height: float
    boxes: tuple[Box, ...]
    curves: tuple[Curve, ...]


@lru_cache(maxsize=64)
def lay_out(cell: CellGenotype) -> CellLayout:
    """Inputs on the left, the output on the right, in between each operation's name on its way to the node it feeds."""
    graph = _Graph(cell)
    columns = order_columns(graph.columns, graph.links)
    middle = heights(columns, graph.links, graph.heights, GAP_Y)
    top = min(middle[i] - graph.heights[i] / 2 for i in middle) - MARGIN - TITLE
    middle = {item: y - top for item, y in middle.items()}
    bottom = max(middle[i] + graph.heights[i] / 2 for i in middle) + MARGIN
    left, x = [], MARGIN
    widths = [
        max((graph.boxes[item].width for item in column if item in graph.boxes), default=0.0) for column in columns
    ]
    for width in widths:
        left.append(x)
        x += width + GAP_X
    place = {item: c for c, column in enumerate(columns) for item in column}
    boxes = {}
    for item, box in graph.boxes.items():
        c = place[item]
        corner = (left[c] + (widths[c] - box.width) / 2, middle[item] - box.height / 2)
        boxes[item] = Box(*corner, box.width, box.height, box.text, box.subscript, box.fill, box.border)
    curves = []
    for path, colour in graph.paths:
        target = boxes[path[-1]]
        port = _port(path, graph.paths, middle, target)
        curves.append(_curve(path, boxes, middle, [(left[place[i]], widths[place[i]]) for i in path], port, colour))
    return CellLayout(x - GAP_X + MARGIN, bottom, tuple(boxes.values()), tuple(curves))


class _Graph:
    """The cell as columns of items: states in even columns, names of operations in odd ones, passing edges in any. An
    edge that is ``none`` is not drawn."""

    def __init__(self, cell: CellGenotype) -> None:
        self.boxes: dict[int, Box] = {}
        self.heights: dict[int, float] = {}
        self.links: Links = []
        self.paths: list[tuple[list[int], Rgb]] = []
        nodes = [[edge for edge in node if edge[0] != "none"] for node in cell.nodes]
        states = len(nodes) + cell.inputs
        rank = [0] * cell.inputs
        for node in nodes:
            rank.append(1 + max((rank[source] for _, source in node), default=0))
        rank.append(1 + max(rank))
        self.columns: list[list[int]] = [[] for _ in range(2 * rank[-1] + 1)]
        incoming = [0] * cell.inputs + [*map(len, nodes), len(cell.concat)]
        inputs = [("c", f"k-{cell.inputs - i}") for i in range(cell.inputs)]
        names = [*inputs, *((str(n), "") for n in range(len(nodes))), ("c", "k")]
        fills = [INPUT] * cell.inputs + [*[NODE] * len(nodes), OUTPUT]
        for state in range(states + 1):
            height = max(STATE_HEIGHT, PORT * (incoming[state] + 1))
            box = Box(0, 0, STATE_WIDTH, height, *names[state], fills[state], INK)
            self._add(2 * rank[state], height, box)
        for target, edges in enumerate(nodes, start=cell.inputs):
            for operation, source in edges:
                self._connect(source, target, 2 * rank[source], 2 * rank[target], operation)
        for state in cell.concat:
            self._connect(state, states, 2 * rank[state], 2 * rank[-1], None)

    def _add(self, column: int, height: float, box: Box | None = None) -> int:
        item = len(self.heights)
        self.columns[column].append(item)
        self.heights[item] = height
        if box is not None:
            self.boxes[item] = box
        return item

    def _connect(self, source: int, target: int, first: int, last: int, operation: str | None) -> None:
        colour = PALE if operation is None else colour_of(operation)
        path = [source]
        for column in range(first + 1, last):
            box = None
            if operation is not None and column == last - 1:
                box = Box(0, 0, text_width(operation) + 14, LABEL_HEIGHT, operation, "", blend(colour, 0.12), colour)
            path.append(self._add(column, LABEL_HEIGHT if box else PASS_HEIGHT, box))
        path.append(target)
        self.links += pairwise(path)
        self.paths.append((path, colour))


@lru_cache(maxsize=512)
def text_width(text: str, size: float = FONT_SIZE) -> float:
    """Width of a text in Pillow's own font, in pixels."""
    return float(font(size).getlength(text))


@lru_cache(maxsize=16)
def font(size: float) -> ImageFont.FreeTypeFont:
    """The font that Pillow carries, so that a drawing looks the same on every machine."""
    loaded = ImageFont.load_default(size)
    assert isinstance(loaded, ImageFont.FreeTypeFont), "Pillow without FreeType"
    return loaded


def _port(path: list[int], paths: list[tuple[list[int], Rgb]], middle: dict[int, float], target: Box) -> float:
    """Height at which a path enters its target: one below the other, in the order in which they arrive."""
    arriving = sorted((middle[other[-2]], other[-2]) for other, _ in paths if other[-1] == path[-1])
    place = arriving.index((middle[path[-2]], path[-2]))
    return target.y + target.height / 2 + PORT * (place - (len(arriving) - 1) / 2)


def _curve(
    path: list[int],
    boxes: dict[int, Box],
    middle: dict[int, float],
    columns: list[tuple[float, float]],
    port: float,
    colour: Rgb,
) -> Curve:
    """Level within every column, where the texts are; all bends lie in the gaps between columns."""
    start = boxes[path[0]]
    points: list[Point] = [(start.x + start.width, middle[path[0]])]
    for item, (left, width) in zip(path[1:-1], columns[1:-1], strict=True):
        points += _bend(points[-1], (left, middle[item]))
        points += _bend(points[-1], (left + width, middle[item]))
    points += _bend(points[-1], (boxes[path[-1]].x, port))
    return Curve(tuple(points), colour)


def _bend(a: Point, b: Point) -> list[Point]:
    half = (a[0] + b[0]) / 2
    return [(half, a[1]), (half, b[1]), b]
