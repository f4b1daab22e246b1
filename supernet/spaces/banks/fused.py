"""All edges that leave a state, with compiled passes between convolutions and products (``engine=compiled``).

For edge r and operation k, a chain of one or two blocks that starts from x = relu(state),

    y = W conv(V, x),   u = BN(y),   and the same again of relu(u) where there is a second block;

the edge's output is sum_k p_kr u_k + sum_j p_jr m_j, where the maps m_j are the same for all edges: pools with their
norms, and the state itself. Edges are evaluated one by one, so that what a pass writes is still in the cache when the
next one reads it.

Kept for the backward pass is y of every block where weights want no gradients; else y of the first of two blocks, and
the rest is computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from supernet.spaces.banks import kernels
from supernet.spaces.banks.depthwise import convolve, gradients, same_padding
from supernet.spaces.banks.kinds import Block, Chain, Known, Shared
from supernet.spaces.banks.norms import Norms

Moments = tuple[Tensor, Tensor]
"""Mean and 1 / sigma of every channel."""


def fusible(known: Known) -> bool:
    """A chain, or what edges share, whose norms use their batch and learn nothing, as in a supernet's training."""
    norms = [Norms([norm]) for norm in known.norms]
    return isinstance(known, Chain | Shared) and all(norm.uses_batch and not norm.affine for norm in norms)


def evaluate_edges(
    x_BCHW: Tensor, maps: Sequence[Tensor], chains_RK: Sequence[Sequence[Chain]], p_KR: Tensor
) -> Sequence[Tensor]:
    """The outputs of R edges, from relu(state), shared maps, and p: first of the chains, then of the maps."""
    blocks = [block for chains in chains_RK for chain in chains for block in chain.blocks]
    weights = [conv.weight for block in blocks for conv in (block.depthwise, block.pointwise)]
    y_RBCHW: Sequence[Tensor] = _Edges.apply(chains_RK, len(maps), p_KR, x_BCHW, *maps, *weights)
    return y_RBCHW


class Layer(NamedTuple):
    """A block and its weights V and W, as the function was given them."""

    block: Block
    kernels: Tensor
    weight: Tensor

    @property
    def margin(self) -> int:
        """The zeros that the convolution sees around its input."""
        kernel, _, dilation = self.block.geometry
        return same_padding(kernel, dilation)

    def convolve(self, x_BHWC: Tensor) -> Tensor:
        """z = conv(V, x)."""
        _, stride, dilation = self.block.geometry
        return _nhwc(convolve(_nchw(x_BHWC), self.kernels, stride, dilation))

    def moments(self, y_BHWC: Tensor) -> Moments:
        """Of a batch; running statistics are tracked."""
        norm, count = self.block.norm, y_BHWC.numel() // y_BHWC.shape[-1]
        if count == 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {y_BHWC.shape}")
        mean_C, var_C, inverse_C = kernels.moments(y_BHWC, norm.eps)
        if norm.running_mean is not None:
            Norms([norm]).track(mean_C, var_C * (count / (count - 1)))
        return mean_C, inverse_C

    def gradients(self, g_BHWC: Tensor, size: torch.Size, replayed: Replayed | None) -> tuple[Tensor, list[Tensor]]:
        """From that of y those of the input, of the given size, and of V and W where they are wanted."""
        kernel, stride, dilation = self.block.geometry
        g_z = _product(g_BHWC, self.weight.flatten(1))
        batch, height, width, channels = size
        shape = (batch, channels, height, width)
        g_x, _ = gradients(_nchw(g_z), None, self.kernels, shape, (stride, dilation), (True, False))
        assert g_x is not None
        if replayed is None:
            return _nhwc(g_x), []
        g_weight = g_BHWC.flatten(0, 2).T @ replayed.z.flatten(0, 2)
        start = replayed.margin - self.margin
        g_kernels = kernels.kernel_gradient(g_z, replayed.seen, kernel, stride, dilation, start)
        return _nhwc(g_x), [g_kernels, g_weight.view_as(self.weight)]


class Replayed(NamedTuple):
    """What a layer read, with a margin of zeros, and z: computed again for the gradients of its weights."""

    seen: Tensor
    margin: int
    z: Tensor


def _evaluate(layers: Sequence[Layer], x_BHWC: Tensor) -> tuple[list[Tensor], list[Moments]]:
    """y and its moments for every layer of a chain."""
    ys: list[Tensor] = []
    moments: list[Moments] = []
    for layer in layers:
        if ys:
            x_BHWC = kernels.rectified(ys[-1], *moments[-1], 0)
        ys.append(_product(layer.convolve(x_BHWC), layer.weight.flatten(1).T))
        moments.append(layer.moments(ys[-1]))
    return ys, moments


class Replay(NamedTuple):
    """A chain in the backward pass: y and moments of its layers, x, and x with a margin where weights want
    gradients."""

    layers: Sequence[Layer]
    ys: list[Tensor]
    moments: Sequence[Moments]
    x_BHWC: Tensor
    padded: tuple[Tensor, int] | None

    def inputs(self, i: int) -> Replayed | None:
        """Of layer i; None where no weight wants a gradient."""
        if self.padded is None:
            return None
        layer = self.layers[i]
        if i == 0:
            return Replayed(*self.padded, layer.convolve(self.x_BHWC))
        seen = kernels.rectified(self.ys[i - 1], *self.moments[i - 1], layer.margin)
        _, stride, dilation = layer.block.geometry
        return Replayed(
            seen,
            layer.margin,
            _nhwc(F.conv2d(_nchw(seen), layer.kernels, None, stride, 0, dilation, seen.shape[-1])),
        )

    def backward(self, g_BHWC: Tensor, last: Replayed | None) -> tuple[Tensor, list[Tensor]]:
        """From the gradient of the last y those of x and of all weights."""
        found: list[Tensor] = []
        end = len(self.layers) - 1
        for i in range(end, -1, -1):
            if i < end:
                sums = kernels.rectified_sums(g_BHWC, self.ys[i], *self.moments[i])
                g_BHWC = kernels.rectified_gradient(g_BHWC, self.ys[i], *self.moments[i], *sums)
            size = self.ys[i - 1].shape if i else self.x_BHWC.shape
            g_BHWC, of_weights = self.layers[i].gradients(g_BHWC, size, last if i == end else self.inputs(i))
            found = of_weights + found
        return g_BHWC, found


class _Edges(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, chains_RK: Sequence[Sequence[Chain]], shared: int, p_KR: Tensor, x_BCHW: Tensor, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        maps, weights = rest[:shared], rest[shared:]
        of_weights = any(ctx.needs_input_grad[4 + shared :])
        x_BHWC, maps_BHWC = _nhwc(x_BCHW.detach()), [_nhwc(m.detach()) for m in maps]
        outputs, kept = [], []
        for layers_K, p_K in zip(_layers(chains_RK, weights), p_KR.detach().T.contiguous(), strict=True):
            ys_K, moments_K = zip(*(_evaluate(layers, x_BHWC) for layers in layers_K), strict=True)
            means, inverses = zip(*(moments[-1] for moments in moments_K), strict=True)
            y_BHWC = kernels.mixed([ys[-1] for ys in ys_K], means, inverses, maps_BHWC, p_K)
            outputs.append(_nchw(y_BHWC))
            for ys, moments in zip(ys_K, moments_K, strict=True):
                kept += [*(ys[:-1] if of_weights else ys), *(t for pair in moments for t in pair)]
        ctx.save_for_backward(p_KR, x_BCHW, *rest, *kept)
        ctx.chains_RK, ctx.shared, ctx.given = chains_RK, shared, len(rest)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *g_RBCHW: Tensor) -> tuple[Any, ...]:
        p_KR, x_BCHW, *rest = (t.detach() for t in ctx.saved_tensors)
        maps, weights, kept = rest[: ctx.shared], rest[ctx.shared : ctx.given], iter(rest[ctx.given :])
        of_p, of_x, *of_rest = ctx.needs_input_grad[2:]
        of_weights = any(of_rest[ctx.shared :])
        layers_RK = _layers(ctx.chains_RK, weights)
        margin = max(layers[0].margin for layers_K in layers_RK for layers in layers_K)
        x_BHWC, padded = _nhwc(x_BCHW), None
        if of_weights:
            padded = F.pad(x_BHWC, (0, 0, *[margin] * 4)), margin
        seen_maps = [_nhwc(m) for m in maps] if of_p else []
        g_R = [_nhwc(g.contiguous(memory_format=torch.channels_last)) for g in g_RBCHW]
        p_RK = p_KR.T.contiguous()
        g_x: Tensor | None = None
        g_p: list[Tensor] = []
        g_weights: list[Tensor | None] = []
        for layers_K, p_K, g in zip(layers_RK, p_RK, g_R, strict=True):
            replays = [_replay(layers, kept, x_BHWC, padded) for layers in layers_K]
            lasts = [replay.inputs(len(replay.layers) - 1) for replay in replays]
            for replay, last in zip(replays, lasts, strict=True):
                if last is not None:
                    replay.ys.append(_product(last.z, replay.layers[-1].weight.flatten(1).T))
            ys, (means, inverses) = [r.ys[-1] for r in replays], zip(*(r.moments[-1] for r in replays), strict=True)
            g_C, gu_KC, g_p_K = kernels.mixed_sums(g, ys, means, inverses, seen_maps)
            g_p.append(g_p_K)
            if not (of_x or of_weights):
                continue
            g_K = kernels.mixed_gradients(g, ys, means, inverses, g_C, gu_KC, p_K)
            for replay, last, g_y in zip(replays, lasts, g_K, strict=True):
                of_input, of_chain = replay.backward(g_y, last)
                g_x = of_input if g_x is None else g_x.add_(of_input)
                g_weights += of_chain
        own = len(p_KR) - ctx.shared
        g_maps = [_nchw(g) for g in kernels.scaled_sums(g_R, p_KR[own:].contiguous())] if ctx.shared else []
        of_p_KR = torch.stack(g_p, 1) if of_p else None
        return None, None, of_p_KR, None if g_x is None else _nchw(g_x), *g_maps, *(g_weights or [None] * len(weights))


def _replay(layers: Sequence[Layer], kept: Any, x_BHWC: Tensor, padded: tuple[Tensor, int] | None) -> Replay:
    """A chain as the forward pass kept it."""
    ys = [next(kept) for _ in range(len(layers) - (padded is not None))]
    moments = [(next(kept), next(kept)) for _ in layers]
    return Replay(layers, ys, moments, x_BHWC, padded)


def _layers(chains_RK: Sequence[Sequence[Chain]], weights: Sequence[Tensor]) -> list[list[list[Layer]]]:
    rest = iter(weights)
    return [
        [[Layer(block, next(rest), next(rest)) for block in chain.blocks] for chain in chains] for chains in chains_RK
    ]


def _product(x_BHWC: Tensor, matrix: Tensor) -> Tensor:
    return (x_BHWC.flatten(0, 2) @ matrix).view(*x_BHWC.shape[:3], -1)


def _nchw(x_BHWC: Tensor) -> Tensor:
    return x_BHWC.permute(0, 3, 1, 2)


def _nhwc(x_BCHW: Tensor) -> Tensor:
    return x_BCHW.permute(0, 2, 3, 1)
