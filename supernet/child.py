"""The found network as a file: safetensors whose metadata say all that is needed to build and to feed it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from supernet.config.check import check_bounds
from supernet.data.decode import read_image
from supernet.errors import UserError
from supernet.interfaces import SearchSpace
from supernet.registry import PARTS, build
from supernet.runtime.files import write_atomic
from supernet.schema.spaces import DartsConfig
from supernet.spaces.genotype import Genotype

FILE = "child.safetensors"
METADATA = "supernet_child"

MAX_HEADER = 10_000_000
"""Bytes of the description of tensors and metadata; that of 20 cells has some hundred thousand."""

MAX_PARTS = 50_000
"""Nodes and edges of a network, which take memory before its tensors do; the largest published cells make some 500."""

MAX_SETTING = 1_000
"""Of the whole numbers that describe a space: nodes, reductions and the like."""

UNFIT = (
    SafetensorError, OSError, ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip
"""What reading and building raise for a file that was not written here."""


@dataclass(frozen=True)
class ChildSpec:
    """What a child is, without its weights. ``size`` is (height, width); ``mean`` and ``std`` are of values in [0, 1];
    ``space`` is the configuration of the space that builds it, by name."""

    genotype: Genotype
    classes: tuple[str, ...]
    in_channels: int
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int
    cells: int
    space: Mapping[str, Any]

    def build_space(self) -> SearchSpace:
        """The space, with children of this size and no auxiliary head. Raises UserError where it is not known here."""
        part = PARTS.get(("space", str(self.space["name"])))
        if part is None:
            raise UserError(f"space={self.space['name']} is not known", valid=[n for g, n in PARTS if g == "space"])
        config: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(part.config), dict(self.space)))
        check_bounds("space.", config)
        space: SearchSpace = build(
            "space",
            config,
            in_channels=self.in_channels,
            classes=len(self.classes),
            child_channels=self.channels,
            child_cells=self.cells,
            auxiliary=False,
        )
        space.check(self.size, search=False)
        return space

    def check(self) -> None:
        """Raise ValueError for what no run has written and what would be too large to build or to feed."""
        pixels = self.size[0] * self.size[1]
        if self.in_channels not in (1, 3) or min(self.size) < 1 or pixels > (Image.MAX_IMAGE_PIXELS or pixels):
            raise ValueError(f"images of {self.in_channels} x {self.size[0]} x {self.size[1]}")
        if not len(self.mean) == len(self.std) == self.in_channels or not all(0 < s < math.inf for s in self.std):
            raise ValueError("mean and std")
        parts = sum(len(cell.nodes) + len(cell.edges) for cell in self.genotype.cells.values())
        odd = any(isinstance(value, int) and value > MAX_SETTING for value in self.space.values())
        if odd or min(self.cells, self.channels, len(self.classes)) < 1 or self.cells * parts > MAX_PARTS:
            raise ValueError(f"{self.cells} cells of {self.channels} channels for {len(self.classes)} classes")

    def to_json(self) -> str:
        """The metadata, as JSON."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return json.dumps({**fields, "genotype": self.genotype.to_json()})

    @classmethod
    def from_json(cls, text: str) -> ChildSpec:
        """Read the metadata back. Raises KeyError, TypeError or ValueError where they are not ours."""
        d = json.loads(text)
        numbers = {name: int(d[name]) for name in ("in_channels", "channels", "cells")}
        height, width = d["size"]
        if "space" not in d:  # written when there was the DARTS space only
            darts = DartsConfig(reductions=int(d["reductions"]), stem_multiplier=int(d["stem_multiplier"]))
            d["space"] = dataclasses.asdict(darts)
        spec = cls(
            genotype=Genotype.from_json(d["genotype"]),
            classes=tuple(str(c) for c in d["classes"]),
            size=(int(height), int(width)),
            mean=tuple(float(v) for v in d["mean"]),
            std=tuple(float(v) for v in d["std"]),
            space=dict(d["space"]),
            **numbers,
        )
        spec.check()
        return spec


class LoadedChild(nn.Module):
    """A trained child in evaluation mode that knows its classes and how to read an image."""

    def __init__(self, spec: ChildSpec) -> None:
        super().__init__()
        self.spec = spec
        self.classes = spec.classes
        self.net = spec.build_space().build_child(spec.genotype)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """``logits_BK`` of normalised images."""
        logits_BK: Tensor = self.net(x_BCHW)
        return logits_BK

    def read(self, file: str | Path) -> Tensor:
        """``x_1CHW`` of an image file: resized, cropped and normalised as in training."""
        x_CHW = read_image(file, self.spec.size[0], self.spec.in_channels) / 255
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.spec.mean, self.spec.std))
        return ((x_CHW - mean) / std)[None]

    @torch.no_grad()
    def predict(self, files: Sequence[str | Path]) -> list[dict[str, float]]:
        """Probability of every class, for each image file. Raises UserError for a file that is no image."""
        device = next(self.parameters()).device
        x_BCHW = torch.cat([self.read(file) for file in files]).to(device)
        return [dict(zip(self.classes, row, strict=True)) for row in self(x_BCHW).softmax(dim=1).tolist()]


def save_child(run_dir: Path, child: nn.Module, spec: ChildSpec) -> None:
    """Write the child's weights, without its auxiliary head, and ``spec`` into the run directory."""
    from safetensors.torch import save

    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in child.state_dict().items()
        if not name.startswith("auxiliary.")
    }
    # One entry only: safetensors writes several in no fixed order, and the same child should be the same file.
    write_atomic(run_dir / FILE, save(tensors, {METADATA: spec.to_json()}))


def load_child(run: str | Path) -> LoadedChild:
    """Load the child of a run directory (or a child's file) for use on the CPU; nothing in the file is executed."""
    from safetensors import safe_open

    path = Path(run)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"run={run}: there is no {FILE}, which a run writes after retraining; check the path")
    try:
        with path.open("rb") as start:
            if int.from_bytes(start.read(8), "little") > MAX_HEADER:
                raise ValueError("the header is too long")
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, Any] = file.metadata() or {}
            spec = ChildSpec.from_json(metadata[METADATA])
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            if max(spec.channels, len(spec.classes)) > max(d for shape in shapes.values() for d in shape):
                raise ValueError("the tensors are too small for the network")
            with torch.device("meta"):  # what the metadata ask for takes memory only where the tensors are there
                expected = {name: tuple(t.shape) for name, t in LoadedChild(spec).net.state_dict().items()}
            if shapes != expected:
                raise ValueError("the tensors are not those of the network")
            loaded = LoadedChild(spec)
            loaded.net.load_state_dict({name: file.get_tensor(name) for name in shapes})
    except UserError as error:
        raise UserError(f"{path} (parts of your own need plugins=[MODULE], or its import): {error}") from error
    except UNFIT as error:
        raise UserError(f"{path} is not a child written by supernet, or is damaged ({type(error).__name__})") from error
    return loaded.eval()
