"""Partial channel connections, as a part of a search."""

from __future__ import annotations

from supernet.interfaces import SearchSpace, SpaceModifier
from supernet.modifiers.described import edited
from supernet.schema.modifiers import PartialChannelsConfig


class PartialChannels(SpaceModifier):
    """PC-DARTS (arXiv:1907.05737), section 3.2: in the supernet, 1/K of the channels go through an edge's operations
    and the rest past them (:class:`supernet.spaces.partial.PartialFanOut`); the child has all its channels.
    """

    def __init__(self, config: PartialChannelsConfig) -> None:
        self.parts = config.parts

    def edit_space(self, space: SearchSpace) -> SearchSpace:
        return edited(space, "partial_channels", partial=self.parts)
