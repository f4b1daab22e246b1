"""Dropout on the outputs of skip connections."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from supernet.interfaces import MixingModifier, PGradient, Setting
from supernet.modifiers.skip_limit import SKIP, check_skip
from supernet.schema.modifiers import SkipDropoutConfig
from supernet.types import Mixing, Moment


class SkipDropout(MixingModifier):
    """P-DARTS (arXiv:1904.12760), section 3.3: dropout after each skip connection, so that gradients do not all take
    the short way; its rate starts anew in every stage and decays, so that skips are judged fairly towards its end.

    The rate of element drops is :func:`dropout_rate` of the share ``t`` of the stage that is done; it acts in training
    passes of both phases, as published. ``rates`` holds one initial rate a stage (paper, CIFAR-10: 0, 0.4, 0.7; the
    command in the published README starts with 0.1). Stages take equal shares of the search, as published, so with no
    part that makes stages the same schedule runs on the whole network. The published code drops after identities only
    and not after the factorized reduction that is the skip connection of a strided edge; the paper and ours make no
    such difference.
    """

    def __init__(self, config: SkipDropoutConfig) -> None:
        self.config = config
        self.skip: dict[str, int] = {}

    def bind(self, setting: Setting) -> None:
        for group in setting.space.groups:
            check_skip("skip_dropout", group)
            self.skip[group.name] = group.options.index(SKIP)

    def edit_mixing(
        self, p: Mixing, moment: Moment, *, generator: torch.Generator, gradient: PGradient | None
    ) -> Mixing:
        if moment.phase not in ("alpha", "weights"):
            return p
        c = self.config
        place = moment.progress * len(c.rates)
        stage = min(int(place), len(c.rates) - 1)
        rate = dropout_rate(place - stage, c.rates[stage], warmup=c.warmup, decay=c.decay)
        return Mixing(
            {
                name: replace(group, dropout_K=_with(group.dropout_K, self.skip[name], group.op_LNK.shape[-1], rate))
                for name, group in p.items()
            }
        )


def dropout_rate(t: float, rate: float, *, warmup: float, decay: float) -> float:
    """P-DARTS (arXiv:1904.12760), section 4.2: the dropout rate decays exponentially while alpha is trained.

    ``t`` in [0, 1) is the share of the stage that is done: rate * (1 - t) for t < warmup, in which P-DARTS holds alpha
    still (schedule of the published code), then rate * exp(-decay * (t - warmup)). Published: stages of 25 epochs with
    10 of warm-up and a factor of exp(-0.2) an epoch, so warmup = 0.4 and decay = 5. Where the warm-up ends the rate
    jumps back to its initial value.
    """
    return rate * (1.0 - t) if t < warmup else rate * math.exp(-decay * (t - warmup))


def _with(dropout_K: tuple[float, ...] | None, k: int, options: int, rate: float) -> tuple[float, ...]:
    """The rates with that of option k replaced."""
    rates = list(dropout_K or (0.0,) * options)
    rates[k] = rate
    return tuple(rates)
