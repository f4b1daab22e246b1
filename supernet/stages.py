"""Stages of a search: when each begins, its network, and how masks and weights come from one to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from supernet.errors import UserError
from supernet.interfaces import SearchSpace, StageModifier
from supernet.runtime.compute import compile_in_place
from supernet.runtime.random import generator, reseed
from supernet.schema import Config
from supernet.spaces.cell import MixedOp
from supernet.types import Group, GroupMixing, Mask


def stage_epochs(config: Config, modifiers: Mapping[str, StageModifier]) -> tuple[int, ...]:
    """The epoch with which each stage begins, 0 first.

    Raises UserError where two parts define stages, or the epochs are too few for a stage; only where ``debug`` has cut
    them, the search stays in the stages that there is time for.
    """
    if len(modifiers) > 1:
        raise UserError(f"modifier=[{','.join(modifiers)}]: at most one part may divide the search into stages")
    for name, modifier in modifiers.items():
        starts, epochs = modifier.starts, config.search.epochs
        begins = (0, *(int(share * epochs + 1e-9) for share in starts), epochs)
        if all(a < b for a, b in pairwise(begins)):
            return begins[:-1]
        if config.limit.epochs is None:
            raise UserError(
                f"search.epochs={epochs} is too few for the {len(starts) + 1} stages of modifier={name}, which begin "
                f"at {', '.join(f'{share:.3g}' for share in starts)} of the epochs: every stage needs an epoch"
            )
        return tuple(sorted({b for b in begins if b < epochs}))
    return (0,)


def build_supernet(config: Config, space: SearchSpace, device: torch.device, stage: int = 0) -> nn.Module:
    """A supernet with new weights, drawn for this stage."""
    reseed(config.seed, "search/init", *((stage,) if stage else ()))
    net = space.build_supernet().to(device)
    if config.compile:
        compile_in_place(net)
    return net


def strongest(p: GroupMixing, group: Group, keep: int) -> Mask:
    """The mask with the ``keep`` strongest of the options that exist, decision by decision; p is averaged over
    placements, and of equals the earlier one stays."""
    rows_NK = p.op_LNK.mean(dim=0).tolist()
    return tuple(_strongest(row, exists, keep) for row, exists in zip(rows_NK, group.mask_NK, strict=True))


def _strongest(row: Sequence[float], exists: Sequence[bool], keep: int) -> tuple[bool, ...]:
    order = sorted((k for k, here in enumerate(exists) if here), key=lambda k: -row[k])
    return tuple(k in order[:keep] for k in range(len(row)))


def carry_over(
    old: nn.Module,
    new: nn.Module,
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer],
    *,
    seed: int,
    stage: int,
) -> None:
    """Give a network the weights, buffers and momentum of the one before, as DrNAS (arXiv:2006.10355),
    section 2.4.

    What has another size belongs to a candidate operation with more channels than before: see :func:`widened`. Both
    networks have the same names; ``optimizers`` are those of ``old`` and of ``new``.
    """
    owner = {
        f"{path}.ops.{k}.{name}": f"{path}.ops.{k}"
        for path, module in new.named_modules()
        if isinstance(module, MixedOp)
        for k, operation in enumerate(module.ops)
        for name in operation.state_dict()
    }

    def fit(name: str, value: Tensor, like: Tensor) -> Tensor:
        if value.shape == like.shape:
            return value

        def index(before: int, after: int) -> Tensor:
            return channel_index(before, after, seed, owner[name], stage).to(value.device)

        return widened(value, like.shape, index)

    values, targets = old.state_dict(), new.state_dict()
    new.load_state_dict({name: fit(name, values[name], like) for name, like in targets.items()})
    before, after = (optimizer.state for optimizer in optimizers)
    weights = dict(old.named_parameters())
    for name, weight in new.named_parameters():
        momentum = before[weights[name]].get("momentum_buffer") if weights[name] in before else None
        if momentum is not None:
            after[weight]["momentum_buffer"] = fit(name, momentum, weight).clone()


def widened(value: Tensor, shape: Sequence[int], index: Callable[[int, int], Tensor]) -> Tensor:
    """Net2Wider (arXiv:1511.05641) as DrNAS has it: channel j of every widened axis is a copy of channel ``index(old,
    new)[j]`` of it. ``shape`` is the new shape of ``value``, with no axis shorter.

    Net2Net divides a copied input channel by its number of copies, which keeps the function where the inputs are copies
    as well. DrNAS's code does not, and its new inputs are other channels, those that bypassed the edge until now: the
    function changes in any case. The batch norm behind takes out the common factor.
    """
    for axis, (before, after) in enumerate(zip(value.shape, shape, strict=True)):
        assert before <= after, "a stage widens and never narrows"
        if before != after:
            value = value.index_select(axis, index(before, after))
    return value


def channel_index(before: int, after: int, seed: int, operation: str, stage: int) -> Tensor:
    """Which channel each of ``after`` channels copies: itself, or for new ones a random one.

    Drawn once for an operation, so that what a layer writes to channel j its norm and the next layer read from there;
    DrNAS's code draws anew before the second half of a separable convolution, which mixes its channels up.
    """
    draw = generator(seed, f"search/widen/{operation}", stage, before, after)
    return torch.cat([torch.arange(before), torch.randint(before, (after - before,), generator=draw)])
