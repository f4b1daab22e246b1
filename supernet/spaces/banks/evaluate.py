"""The weighted sum of all operations on the edges of a bank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.spaces.banks.depthwise import same_padding
from supernet.spaces.banks.features import Features, as_images, by_pixel, identity, size_of
from supernet.spaces.banks.kinds import Block, Chain, Dense, Known, Reduce, Shared
from supernet.spaces.banks.norms import Norms
from supernet.spaces.banks.stages import Product, Stage, Term, hidden, mixture
from supernet.spaces.ops import FactorizedReduce


def evaluate(features: Features, known_KR: Sequence[Sequence[Known]], p_KR: Tensor) -> Tensor:
    """The weighted sum of K kinds of operations, side by side for R edges: y_BEHW. Kinds with weights
    come first.

    What all edges share enters as a product of one map with p_kr * 1, side by side for all edges r.
    """
    own = sum(not isinstance(known_R[0], Shared) for known_R in known_KR)
    stages = [last_stage(features, known_R) for known_R in known_KR[:own]]
    shared = known_KR[own:]
    if not shared:
        return as_images(mixture(stages, p_KR, None), stages[0].size_BHW)
    maps = [features.shared(known_R) for known_R in shared]
    channels = maps[0].shape[1]
    scale_KRC, shift_E = shared_scales(shared, p_KR[own:], channels)
    blocks_KCE = diagonal_blocks(scale_KRC, channels).to(maps[0].dtype)
    if stages:
        y_nE = mixture(stages, p_KR[:own], shift_E)
    else:
        y_nE = maps[0].new_zeros(maps[0].numel() // channels, blocks_KCE.shape[2])
        y_nE = y_nE if shift_E is None else y_nE + shift_E.to(y_nE.dtype)
    for map_BCHW, block_CE in zip(maps, blocks_KCE, strict=True):
        y_nE = y_nE.addmm_(by_pixel(map_BCHW), block_CE)  # one by one: gradients are whole maps, and dense
    return as_images(y_nE, size_of(maps[0]))


def last_stage(features: Features, known_R: Sequence[Known]) -> Stage:
    """What the last product of one kind of operation reads; the stages before it are evaluated on the way."""
    first = known_R[0]
    if isinstance(first, Chain):
        chains = [known.blocks for known in known_R if isinstance(known, Chain)]
        x_BEHW = features.tiled(len(chains))
        *before, last = zip(*chains, strict=True)
        for blocks in before:
            x_BEHW = hidden(separable(blocks, x_BEHW))
        return separable(last, x_BEHW)
    norms = Norms.of(known_R)
    assert norms is not None
    if isinstance(first, Dense):
        kernel, stride, dilation = first.geometry
        weight = stacked([known.conv for known in known_R if isinstance(known, Dense)], features.relu)
        product = Product(1, True, stride, same_padding(kernel, dilation), dilation)
        return Stage(Term(product, norms), features.relu, None, weight)
    weight = reduction_weights([known.module for known in known_R if isinstance(known, Reduce)], features.halves)
    return Stage(Term(Product(1, True), norms), features.halves, None, weight)


def separable(blocks: Sequence[Block], x_BEHW: Tensor) -> Stage:
    """The stage of the same block on all edges."""
    _, stride, dilation = blocks[0].geometry
    term = Term(Product(len(blocks)), Norms([block.norm for block in blocks]), (stride, dilation))
    depthwise = stacked([block.depthwise for block in blocks], x_BEHW)
    return Stage(term, x_BEHW, depthwise, stacked([block.pointwise for block in blocks], x_BEHW))


def stacked(convs: Sequence[nn.Conv2d], like: Tensor) -> Tensor:
    """The kernels of all edges, output channels side by side."""
    return torch.cat([conv.weight for conv in convs]).to(like.dtype)


def reduction_weights(modules: Sequence[FactorizedReduce], like: Tensor) -> Tensor:
    """Factorized reductions as 1x1 convolutions of :attr:`.Features.halves`: the first convolution sees the first C
    channels, the second one the others."""
    pieces = []
    for module in modules:
        first, second = module.conv_1.weight, module.conv_2.weight
        pieces += [F.pad(first, (0, 0, 0, 0, 0, second.shape[1])), F.pad(second, (0, 0, 0, 0, first.shape[1], 0))]
    return torch.cat(pieces).to(like.dtype)


def shared_scales(shared: Sequence[Sequence[Known]], p_KR: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """By how much each shared map enters each edge: p, which knows no channels, and a shift where p is all; in eval
    mode with running statistics, which every norm has of its own, p / sigma and -p * mean / sigma."""
    norms_K = [Norms.of(known_R) for known_R in shared]
    if all(norms is None or norms.uses_batch for norms in norms_K):
        return p_KR[..., None], None
    scales, shifts = [], []
    for norms, p_R in zip(norms_K, p_KR, strict=True):
        scale_RC = p_R[:, None].expand(-1, channels)
        if norms is not None and not norms.uses_batch:
            mean_E, var_E = norms.running()
            scale_RC = scale_RC * (var_E + norms.eps).rsqrt().view(-1, channels)
            shifts.append(-mean_E * scale_RC.flatten())
        scales.append(scale_RC)
    return torch.stack(scales), torch.stack(shifts).sum(0)


def diagonal_blocks(scale_KRC: Tensor, channels: int) -> Tensor:
    """For every k a matrix [C, R * C] of R diagonal blocks, with ``scale_KRC[k, r]`` on the diagonal of block r."""
    return (identity(channels, scale_KRC)[:, None] * scale_KRC[:, None]).flatten(2)
