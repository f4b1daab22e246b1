"""The stages of a bank: depthwise convolutions, pointwise products, batch norms, and the sum weighted by p.

A map holds R blocks of C channels, one for each edge (E = R * C). For operation k with pointwise weights W_k,

    hidden stage   h   = relu(BN(W z))
    last stage     out = sum over k of p_k * BN_k(W_k z_k)

where p_k * gamma_k is nothing but another scale for the norm: its multiplication is free, and its gradient is the one
that the library's own batch-norm kernel gives for a scale. The shifts of all norms add up to one.

z is a depthwise convolution of x with kernels V, or x itself. Both are single autograd functions in order to keep
little: x where weights need a gradient, from which the backward pass computes z and W z again, else W z alone.
Statistics are always in float32 or better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from supernet.spaces.banks.depthwise import convolve, gradients
from supernet.spaces.banks.features import as_images, by_pixel, identity, size_of
from supernet.spaces.banks.norms import Norms
from supernet.spaces.banks.once import once


@dataclass(frozen=True)
class Product:
    """y = W z: pointwise within each of ``groups`` blocks of channels, or, where the edges read one ``shared`` map, a
    convolution from it to all E channels."""

    groups: int
    shared: bool = False
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    def __call__(self, z_BCHW: Tensor, weight: Tensor) -> Tensor:
        if not self.shared:
            return within_blocks(z_BCHW, weight.flatten(1).view(self.groups, -1, weight.shape[1]))
        y_BEHW = F.conv2d(z_BCHW, weight, None, self.stride, self.padding, self.dilation)
        return y_BEHW.contiguous(memory_format=torch.channels_last)

    def gradients(
        self, g_BEHW: Tensor, z_BCHW: Tensor | None, weight: Tensor, wants: Sequence[bool]
    ) -> Sequence[Tensor | None]:
        """Gradients of z and W, as far as wanted; z itself may be missing where nobody shares it and W wants none."""
        of_z, of_weight = wants
        g_z: Tensor | None = None
        if not self.shared and of_z:
            g_z = within_blocks(g_BEHW, weight.flatten(1).view(self.groups, -1, weight.shape[1]).mT)
        if z_BCHW is None or not (of_weight or self.shared):
            return g_z, None
        geometry = ([self.stride] * 2, [self.padding] * 2, [self.dilation] * 2, False, [0, 0], self.groups)
        grads: Sequence[Tensor | None] = torch.ops.aten.convolution_backward(
            g_BEHW, z_BCHW, weight, None, *geometry, [self.shared and of_z, of_weight, False]
        )
        return grads[0] if self.shared else g_z, grads[1]


def within_blocks(z_BEHW: Tensor, weight_RCC: Tensor) -> Tensor:
    """Each of R blocks of C channels times its own matrix [outputs, inputs].

    Grouped convolutions of narrow blocks are slow on CPUs: a dense product with zeros beside the blocks takes 0.6 of
    the time for 4 blocks of 16 channels.
    """
    blocks, channels, _ = weight_RCC.shape
    if channels > WIDE:
        return F.conv2d(z_BEHW, weight_RCC.reshape(-1, channels, 1, 1), groups=blocks)
    one_RR, width = identity(blocks, weight_RCC), z_BEHW.shape[1]
    weight_EE = (one_RR[:, None, :, None] * weight_RCC[:, :, None]).reshape(-1, width)
    return as_images(by_pixel(z_BEHW) @ weight_EE.T, size_of(z_BEHW))


WIDE = 16
"""Blocks of more channels than this are no longer faster as one dense product."""


@dataclass(frozen=True)
class Term:
    """One kind of operation on all edges: its depthwise convolution (stride and dilation) or None, its product, its
    norms."""

    product: Product
    norms: Norms
    depthwise: tuple[int, int] | None = None

    def features(self, x: Tensor, kernels: Tensor | None) -> Tensor:
        """z, which the product reads."""
        if self.depthwise is None or kernels is None:
            return x
        return convolve(x, kernels, *self.depthwise)

    def keep(self, x: Tensor, y: Tensor, weights_want: bool) -> tuple[Tensor | None, Tensor | None]:
        """What of (x, y) the backward pass needs: where weights want gradients, all but x is computed again."""
        return (x if weights_want or self.product.shared else None), (None if weights_want else y)

    def backward(
        self, g_BEHW: Tensor, kept: Sequence[Any], size: Sequence[int], scale_E: Tensor | None, wants: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        """Gradients of x, V, W, and of scale and shift of the norm, as far as wanted; x has the given size.

        ``kept``: x, y, V, W, and what the norm used: mean and 1 / sigma of the batch, or mean and variance as tracked.
        """
        x, y, kernels, weight, mean_E, spread_E = kept
        z: Any = None if x is None else self.features(x, kernels)
        if y is None:
            y = self.product(z, weight)
        batch = self.norms.uses_batch
        running = (None, None) if batch else (mean_E, spread_E)
        mask = [any(wants[:3]), *wants[3:]]
        g_y, g_scale_E, g_shift_E = torch.ops.aten.native_batch_norm_backward(
            g_BEHW, y, scale_E, *running, mean_E, spread_E, batch, self.norms.eps, mask
        )
        if not mask[0]:
            return None, None, None, g_scale_E, g_shift_E
        if batch and wants[2] and self.product.shared and weight.shape[-1] == 1:
            # The gradients of y add up to 0, so a mean of z counts for nothing but rounding errors in that of W.
            z = z - z.mean((0, 2, 3), keepdim=True)
        g_x, g_weight = self.product.gradients(g_y, z, weight, (any(wants[:2]), wants[2]))
        g_kernels = None
        if self.depthwise is not None and g_x is not None:
            g_x, g_kernels = gradients(g_x, x, kernels, size, self.depthwise, wants)
        return g_x, g_kernels, g_weight, g_scale_E, g_shift_E


class Stage(NamedTuple):
    """A term and what it is applied to: a map x, depthwise kernels V (or None), and weights W."""

    term: Term
    x: Tensor
    kernels: Tensor | None
    weight: Tensor

    @property
    def size_BHW(self) -> tuple[int, int, int]:
        return size_of(self.x, self.term.depthwise[0] if self.term.depthwise else self.term.product.stride)


def hidden(stage: Stage) -> Tensor:
    """relu(BN(W z)), h_BEHW."""
    norms = stage.term.norms
    h_BEHW: Tensor = _Hidden.apply(*stage, norms.gamma_E(), norms.beta_E())
    return h_BEHW


def mixture(stages: Sequence[Stage], p_KR: Tensor, shift_E: Tensor | None) -> Tensor:
    """The sum over K stages of p_k * BN_k(W_k z_k), plus a shift, as pixels: y_nE."""
    terms, x, kernels, weights = zip(*stages, strict=True)
    scale_KE = p_KR.repeat_interleave(weights[0].shape[0] // p_KR.shape[1], dim=1)
    if any(term.norms.affine for term in terms):
        gammas, betas = [term.norms.gamma_E() for term in terms], [term.norms.beta_E() for term in terms]
        shifts = [scale_E * beta_E for scale_E, beta_E in zip(scale_KE, betas, strict=True) if beta_E is not None]
        shift_E = torch.stack(shifts if shift_E is None else [*shifts, shift_E]).sum(0)
        pairs = zip(scale_KE, gammas, strict=True)
        scale_KE = torch.stack([scale_E if gamma_E is None else scale_E * gamma_E for scale_E, gamma_E in pairs])
    y_nE: Tensor = _Mixture.apply(terms, scale_KE, shift_E, *x, *kernels, *weights)
    return y_nE


class _Hidden(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        term: Term,
        x_BEHW: Tensor,
        kernels: Tensor | None,
        weight: Tensor,
        gamma_E: Tensor | None,
        beta_E: Tensor | None,
    ) -> Tensor:
        y_BEHW, norms = term.product(term.features(x_BEHW, kernels), weight), term.norms
        mean_E, var_E = norms.before(y_BEHW)
        h_BEHW, *used = torch.native_batch_norm(
            y_BEHW, gamma_E, beta_E, mean_E, var_E, norms.uses_batch, 1.0, norms.eps
        )
        norms.track(mean_E, var_E)
        h_BEHW.relu_()
        kept = term.keep(x_BEHW, y_BEHW, any(ctx.needs_input_grad[2:4]))
        statistics = used if norms.uses_batch else (mean_E, var_E)
        ctx.save_for_backward(gamma_E, h_BEHW, *kept, kernels, weight, *statistics)
        ctx.term, ctx.size = term, x_BEHW.shape
        return h_BEHW

    @staticmethod
    @once
    def backward(ctx: Any, saved: Sequence[Tensor], g_BEHW: Tensor) -> tuple[Tensor | None, ...]:
        gamma_E, h_BEHW, *kept = saved
        g_BEHW = g_BEHW.contiguous(memory_format=torch.channels_last)
        # In place, since nothing but the next stage reads h, whose gradient is new.
        torch.ops.aten.threshold_backward.grad_input(g_BEHW, h_BEHW, 0, grad_input=g_BEHW)
        return None, *ctx.term.backward(g_BEHW, kept, ctx.size, gamma_E, ctx.needs_input_grad[1:])


class _Mixture(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, terms: tuple[Term, ...], scale_KE: Tensor, shift_E: Tensor | None, *inputs: Tensor) -> Tensor:
        count = len(terms)
        stages = list(zip(terms, inputs[:count], inputs[count : 2 * count], inputs[2 * count :], strict=True))
        ys = [term.product(term.features(x, kernels), weight) for term, x, kernels, weight in stages]
        means, variances = zip(*(_statistics(y, term.norms) for y, term in zip(ys, terms, strict=True)), strict=True)
        inverses = torch._foreach_rsqrt(torch._foreach_add(variances, [term.norms.eps for term in terms]))
        kept: list[Tensor | None] = []
        for k, (term, x, kernels, weight) in enumerate(stages):
            spread_E = inverses[k] if term.norms.uses_batch else variances[k]
            wants = any(ctx.needs_input_grad[3 + count + k :: count])
            kept += [*term.keep(x, ys[k], wants), kernels, weight, means[k], spread_E]
        # The sum of (y - mean) * scale / sigma, plus the shift, as the sum of y * a, plus b.
        dtype, size_BHW = ys[0].dtype, size_of(ys[0])
        a_KE = (scale_KE * torch.stack(inverses)).to(dtype)
        b_E = (-a_KE * torch.stack(means)).sum(0)
        b_E = b_E if shift_E is None else b_E + shift_E
        y_nE = ys[0].new_empty(ys[0].numel() // len(b_E), len(b_E))
        torch.addcmul(b_E.to(dtype), by_pixel(ys[0]), a_KE[0], out=y_nE)
        for y_BEHW, a_E in zip(ys[1:], a_KE[1:], strict=True):
            y_nE.addcmul_(by_pixel(y_BEHW), a_E)
        ctx.save_for_backward(scale_KE, *kept)
        ctx.terms, ctx.size_BHW, ctx.sizes = terms, size_BHW, [x.shape for x in inputs[:count]]
        return y_nE

    @staticmethod
    @once
    def backward(ctx: Any, saved: Sequence[Tensor], g_nE: Tensor) -> tuple[Tensor | None, ...]:
        scale_KE, *kept = saved
        g_BEHW = as_images(g_nE.contiguous(), ctx.size_BHW)
        _, of_scale, of_shift, *needs = ctx.needs_input_grad
        count = len(ctx.terms)
        found = []
        for k, (term, scale_E) in enumerate(zip(ctx.terms, scale_KE, strict=True)):
            wants = (*needs[k::count], of_scale, of_shift and k == 0)  # the shift's is the same for all terms
            found.append(term.backward(g_BEHW, kept[6 * k : 6 * k + 6], ctx.sizes[k], scale_E, wants))
        of_x, of_kernels, of_weights, scales, shifts = zip(*found, strict=True)
        return None, torch.stack(scales) if of_scale else None, shifts[0], *of_x, *of_kernels, *of_weights


def _statistics(y_BEHW: Tensor, norms: Norms) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance that the norms use; running statistics are tracked."""
    running_mean_E, running_var_E = norms.before(y_BEHW)
    if running_mean_E is not None and running_var_E is not None and not norms.uses_batch:
        return running_mean_E, running_var_E
    mean_E, var_E = torch.batch_norm_update_stats(y_BEHW, running_mean_E, running_var_E, 1.0)
    norms.track(running_mean_E, running_var_E)
    return mean_E, var_E
