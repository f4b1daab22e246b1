"""Batch norm and the weighted sum over operations, folded into the pointwise product before them.

Let z be the input of a pointwise convolution W, one row per pixel, n rows, with the mean already taken off (what is
taken off does not change the output of a batch norm), and V = zᵀz / n. Then the variance of channel o of Wz is w_o V
w_oᵀ, and

    p · BN(Wz) = A z + p·β,      A = diag(a) W,      a = p·gamma·r,      r_o = 1 / sqrt(w_o V w_oᵀ + ε)

so that neither Wz nor its normalisation ever exists, and the sum over operations is a sum of products. With g the
gradient of the sum and G = gᵀz, the chain rule gives

    da = rowsum(G ∘ W)     dp = Σ_o (da·gamma·r)_o + Σ_o β_o Σ_n g_no     dgamma = da·p·r     dβ = p Σ_n g_n
    dv = -½ da·a·r²        (v_o the variance)                         dW = diag(a) G + 2 diag(dv) W V
    dz = (g - mean g) A + z S,    S = 2/n Wᵀ diag(dv) W

The norm's own output never exists, autograd keeps z alone, and the norms of all operations cost one small product each,
WV = yᵀz / n with y = Wz, which passes through memory once. (V would do without y. But where W cancels most of z, the
rounding errors of V, squared, would be all that is left of the variance; those of WV are not squared.) All small
matrices of all operations and edges of a bank are stacked along M, and computed in float64.

Letters: M operations times edges, R edges of the bank (rows), n pixels of the batch, C channels, in and out.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Term:
    """One operation of a bank: for which rows it is evaluated.

    ``shared``: one z serves all rows (a pool; the same features, other weights p), else z holds a block of C channels
    for each row. ``pointwise``: there is a W (not for a pool, whose W is 1). ``normalised``: a batch norm follows (not
    for an identity).
    """

    rows: tuple[int, ...]
    shared: bool = False
    pointwise: bool = True
    normalised: bool = True


@dataclass(frozen=True)
class Affine:
    """What is known of the norms: gamma and β, stacked as [M, C] (None: 1 and 0), ε, and the running mean and
    variance where they are used instead of those of the batch. ``left``: the mean that is left on z, from rounding."""

    eps: float
    scale_MC: Tensor | None = None
    shift_MC: Tensor | None = None
    fixed: tuple[Tensor, Tensor] | None = None
    left_MC: Tensor | None = None


def mixture(
    terms: Sequence[Term], rows: int, z: Sequence[Tensor], weight_MCC: Tensor, p_M: Tensor, norm: Affine
) -> tuple[list[Tensor], Tensor]:
    """For every row, the sum over terms of p · BN(Wz): ``rows`` feature maps [B, C, H, W], and the variances [M, C]."""
    *y, var_MC = _Mixture.apply(tuple(terms), rows, weight_MCC, p_M, norm.scale_MC, norm.shift_MC, norm, *z)
    return y, var_MC


def hidden(terms: Sequence[Term], z: Sequence[Tensor], weight_MCC: Tensor, norm: Affine) -> tuple[list[Tensor], Tensor]:
    """relu(BN(Wz)) for every term, laid out as z is, and the variances [M, C]."""
    *h, var_MC = _Hidden.apply(tuple(terms), weight_MCC, norm.scale_MC, norm.shift_MC, norm, *z)
    return h, var_MC


def by_pixel(x_BCHW: Tensor, channels: int) -> Tensor:
    """The map as [n, blocks, channels], a view of a map in channels-last format."""
    return x_BCHW.permute(0, 2, 3, 1).reshape(-1, x_BCHW.shape[1] // channels, channels)


def as_images(x_nGC: Tensor, like_BCHW: Tensor) -> Tensor:
    """Inverse of :func:`by_pixel`."""
    batch, _, height, width = like_BCHW.shape
    return x_nGC.reshape(batch, height, width, -1).permute(0, 3, 1, 2)


def inner(u_nGC: Tensor, v_nGC: Tensor) -> Tensor:
    """Σ over n of u vᵀ for every block, [G, C, C], in float64, from products in at least float32.

    Summed in slices, and the slices in float64: errors of rounding then average out instead of growing with n. A slice
    is every k-th pixel, so that slices and blocks together are one batch of a batched product without a copy.
    """
    n, blocks, channels = v_nGC.shape
    if u_nGC.dtype not in (torch.float32, torch.float64):
        u_nGC, v_nGC = u_nGC.float(), v_nGC.float()
    few = 1 << max(0, (n // (8 * channels)).bit_length() - 1)  # so that the slices' products stay smaller than z
    k = math.gcd(n, min(few, 64)) if u_nGC.is_contiguous() and v_nGC.is_contiguous() else 1
    if k > 1:
        u_nGC = u_nGC.view(n // k, k * blocks, -1)
        v_nGC = v_nGC.view(n // k, k * blocks, -1)
    products = torch.bmm(u_nGC.permute(1, 2, 0), v_nGC.transpose(0, 1))
    return products.view(k, blocks, *products.shape[1:]).sum(0, dtype=torch.float64)


class Fold:
    """The small matrices of one bank, in float64: everything of the module's docstring that has no pixels."""

    def __init__(
        self,
        terms: Sequence[Term],
        z: Sequence[Tensor],
        y: Sequence[Tensor],
        weight_MCC: Tensor,
        p_M: Tensor | None,
        norm: Affine,
    ) -> None:
        self.terms, self.norm = terms, norm
        self.n = z[0].shape[0]
        self.weight = weight_MCC.double()
        self.p_M1 = None if p_M is None else p_M.double()[:, None]
        self.identity_M1 = _identities(terms, weight_MCC.device)
        if norm.fixed is None:
            if self.n == 1:
                raise ValueError("Expected more than 1 value per channel when training, as in any batch norm")
            self.weight_cov = torch.cat([_weighted_covariance(*each) for each in zip(terms, y, z, strict=True)])
            self.var_MC = (self.weight_cov * self.weight).sum(-1)
        else:
            self.var_MC = norm.fixed[1].double()
        self.r_MC = torch.rsqrt(self.var_MC + norm.eps)
        if self.identity_M1 is not None:
            self.r_MC = self.r_MC.masked_fill(self.identity_M1, 1.0)
        a_MC = self.r_MC if norm.scale_MC is None else self.r_MC * norm.scale_MC
        b_MC = None if norm.fixed is None else -a_MC * norm.fixed[0]
        if norm.left_MC is not None:
            b_MC = -a_MC * (self.weight @ norm.left_MC[..., None])[..., 0]
        if norm.shift_MC is not None:
            b_MC = norm.shift_MC.double() if b_MC is None else b_MC + norm.shift_MC
        self.a_MC = self._times_p(a_MC)
        self.b_MC = None if b_MC is None else self._times_p(b_MC)
        self.A_MCC = self.a_MC[..., None] * self.weight

    def _times_p(self, t_MC: Tensor) -> Tensor:
        return t_MC if self.p_M1 is None else t_MC * self.p_M1

    def backward(self, outer_MCC: Tensor, sum_g_MC: Tensor) -> SmallGradients:
        """All gradients without pixels, from G and the sum of g over the pixels."""
        norm = self.norm
        da_MC = (outer_MCC * self.weight).sum(-1)
        if norm.fixed is not None:
            da_MC = da_MC - norm.fixed[0] * sum_g_MC
        dar_MC = da_MC * self.r_MC
        dp_M = None
        if self.p_M1 is not None:
            dp_MC = dar_MC if norm.scale_MC is None else dar_MC * norm.scale_MC
            dp_M = (dp_MC if norm.shift_MC is None else dp_MC + norm.shift_MC * sum_g_MC).sum(-1)
        dweight_MCC = self.a_MC[..., None] * outer_MCC
        S_MCC = None
        if norm.fixed is None:
            dv_MC = -0.5 * dar_MC * self.a_MC * self.r_MC
            if self.identity_M1 is not None:
                dv_MC = dv_MC.masked_fill(self.identity_M1, 0.0)
            dweight_MCC = dweight_MCC + 2.0 * dv_MC[..., None] * self.weight_cov
            S_MCC = (self.weight.mT * (2.0 / self.n)) @ (dv_MC[..., None] * self.weight)
        return SmallGradients(
            dweight_MCC,
            dp_M,
            None if norm.scale_MC is None else self._times_p(dar_MC),
            None if norm.shift_MC is None else self._times_p(sum_g_MC),
            S_MCC,
        )


class SmallGradients(NamedTuple):
    """Gradients of W, p, gamma, β (None where there is none), and S."""

    weight_MCC: Tensor
    p_M: Tensor | None
    scale_MC: Tensor | None
    shift_MC: Tensor | None
    S_MCC: Tensor | None


def _weighted_covariance(term: Term, y_nRC: Tensor, z_nGC: Tensor) -> Tensor:
    """WV of one term, [rows, C, C]."""
    n, _, channels = z_nGC.shape
    rows = len(term.rows)
    if not term.normalised:
        return torch.zeros(rows, channels, channels, dtype=torch.float64, device=z_nGC.device)
    return (_outer(term, y_nRC, z_nGC, None) / n).expand(rows, -1, -1)


def _products(terms: Sequence[Term], z: Sequence[Tensor], weight_MCC: Tensor) -> list[Tensor]:
    """y = Wz of every term, [n, rows, C]; z itself where there is no W."""
    products = []
    for term, z_nGC, weight in zip(terms, z, _split(weight_MCC.mT.to(z[0].dtype), terms), strict=True):
        if not term.pointwise:
            products.append(z_nGC)
            continue
        n, _, channels = z_nGC.shape
        rows = len(term.rows)
        y_nRC = z_nGC.new_empty(n, rows, channels)
        torch.bmm(z_nGC.transpose(0, 1).expand(rows, -1, -1), weight, out=y_nRC.transpose(0, 1))
        products.append(y_nRC)
    return products


def _identities(terms: Sequence[Term], device: torch.device) -> Tensor | None:
    if all(term.normalised for term in terms):
        return None
    flags = tuple(int(not term.normalised) for term in terms for _ in term.rows)
    return constant(flags, device).bool()[:, None]


@functools.lru_cache(maxsize=1024)
def constant(values: tuple[int, ...], device: torch.device) -> Tensor:
    """Indices on the device, copied there once: a copy in every step would make the host wait. Of integers alone, since
    (True,) and (1,) are one key of the cache."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)


def _split(t_M: Tensor, terms: Sequence[Term]) -> tuple[Tensor, ...]:
    return tuple(t_M.split([len(term.rows) for term in terms]))


def _runs(rows: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Cut rows into runs of consecutive ones: (position of the first, first row, length)."""
    start = 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i] != rows[i - 1] + 1:
            yield start, rows[start], i - start
            start = i


def _rows_of(t_nRC: Tensor, rows: tuple[int, ...]) -> Tensor:
    """The blocks named by ``rows``: a view where they are consecutive."""
    if rows == tuple(range(rows[0], rows[-1] + 1)):
        return t_nRC[:, rows[0] : rows[-1] + 1]
    return t_nRC[:, constant(rows, t_nRC.device)]


def _input_gradient(
    term: Term, g_nRC: Tensor, z_nGC: Tensor, off_RC: Tensor | None, A: Tensor, S: Tensor | None
) -> Tensor:
    """dz = g A + z S for one term; summed over its rows where they share z. ``off``: what was taken off g."""
    n, _, channels = z_nGC.shape
    if off_RC is not None:
        constant = (off_RC[:, None] @ A)[:, 0].to(z_nGC.dtype)
    A = A.to(z_nGC.dtype)
    if term.shared:
        g, A = g_nRC.reshape(n, -1), A.reshape(-1, channels)
        dz_nC = g @ A if off_RC is None else torch.addmm(constant.sum(0), g, A)
        if S is not None and term.normalised:
            dz_nC.addmm_(z_nGC[:, 0], S.sum(0).to(z_nGC.dtype))
        return dz_nC[:, None]
    dz_nGC = z_nGC.new_empty(z_nGC.shape)
    dz_GnC = dz_nGC.transpose(0, 1)
    torch.bmm(g_nRC.transpose(0, 1), A, out=dz_GnC)
    if S is not None:
        dz_GnC.baddbmm_(z_nGC.transpose(0, 1), S.to(z_nGC.dtype))
    return dz_nGC


def _outer(term: Term, g_nRC: Tensor, z_nGC: Tensor, off_RC: Tensor | None) -> Tensor:
    """G of one term, [rows, C, C]."""
    if not term.shared:
        return inner(g_nRC, z_nGC)
    n, rows, channels = g_nRC.shape
    outer = inner(g_nRC.reshape(n, 1, rows * channels), z_nGC).view(rows, channels, channels)
    return outer if off_RC is None else outer + off_RC[..., None] * z_nGC.sum((0, 1))


class _Mixture(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        terms: tuple[Term, ...],
        rows: int,
        weight_MCC: Tensor,
        p_M: Tensor,
        scale_MC: Tensor | None,
        shift_MC: Tensor | None,
        norm: Affine,
        *z: Tensor,
    ) -> tuple[Tensor, ...]:
        channels = weight_MCC.shape[1]
        flat = [by_pixel(z_BCHW, channels) for z_BCHW in z]
        products = _products(terms, flat, weight_MCC)
        fold = Fold(terms, flat, products, weight_MCC, p_M, norm)
        y_nRC = z[0].new_zeros(fold.n, rows, channels)
        if fold.b_MC is not None:
            index = constant(tuple(row for term in terms for row in term.rows), y_nRC.device)
            y_nRC += fold.b_MC.new_zeros(rows, channels).index_add_(0, index, fold.b_MC).to(y_nRC.dtype)
        for term, term_nRC, a_RC in zip(terms, products, _split(fold.a_MC.to(y_nRC.dtype), terms), strict=True):
            for i, first, length in _runs(term.rows):
                part = term_nRC[:, i : i + length] if term.pointwise else term_nRC
                y_nRC[:, first : first + length].addcmul_(part, a_RC[i : i + length])
        ctx.save_for_backward(*z)
        ctx.fold = fold
        var_MC = fold.var_MC
        ctx.mark_non_differentiable(var_MC)
        batch, _, height, width = z[0].shape
        y_BHWRC = y_nRC.view(batch, height, width, rows, channels)
        return (*(y_BHWC.permute(0, 3, 1, 2) for y_BHWC in y_BHWRC.unbind(3)), var_MC)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        fold = ctx.fold
        g_BEHW = torch.cat(grads[:-1], dim=1).contiguous(memory_format=torch.channels_last)
        g_nRC = by_pixel(g_BEHW, fold.weight.shape[1])
        sum_g_RC = _take_mean_off(g_nRC, fold)
        sum_g_MC = torch.cat([_rows_of(sum_g_RC[None], term.rows)[0] for term in fold.terms])
        gs = [_rows_of(g_nRC, term.rows) for term in fold.terms]
        return (None, None, *_backward(fold, ctx.saved_tensors, gs, sum_g_MC))


class _Hidden(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        terms: tuple[Term, ...],
        weight_MCC: Tensor,
        scale_MC: Tensor | None,
        shift_MC: Tensor | None,
        norm: Affine,
        *z: Tensor,
    ) -> tuple[Tensor, ...]:
        channels = weight_MCC.shape[1]
        flat = [by_pixel(z_BCHW, channels) for z_BCHW in z]
        products = _products(terms, flat, weight_MCC)
        fold = Fold(terms, flat, products, weight_MCC, None, norm)
        dtype = z[0].dtype
        bs = [None] * len(terms) if fold.b_MC is None else _split(fold.b_MC.to(dtype), terms)
        hs = []
        for z_BCHW, h_nGC, a, b in zip(z, products, _split(fold.a_MC.to(dtype), terms), bs, strict=True):
            h_nGC *= a
            if b is not None:
                h_nGC += b
            hs.append(as_images(h_nGC.relu_(), z_BCHW))
        ctx.save_for_backward(*z, *hs)
        ctx.fold = fold
        var_MC = fold.var_MC
        ctx.mark_non_differentiable(var_MC)
        return (*hs, var_MC)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        fold = ctx.fold
        count = len(fold.terms)
        z, hs = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        gs, sums = [], []
        for g_BCHW, h_BCHW in zip(grads[:-1], hs, strict=True):
            g_BCHW = g_BCHW.contiguous(memory_format=torch.channels_last)
            gs.append(by_pixel(torch.ops.aten.threshold_backward(g_BCHW, h_BCHW, 0), fold.weight.shape[1]))
            sums.append(_take_mean_off(gs[-1], fold))
        weight, _, *rest = _backward(fold, z, gs, torch.cat(sums))
        return (None, weight, *rest)


def _take_mean_off(g_nRC: Tensor, fold: Fold) -> Tensor:
    """Sum g over the pixels, and centre it in place where the statistics are those of the batch."""
    sum_RC = g_nRC.sum(0, dtype=torch.promote_types(g_nRC.dtype, torch.float32))
    if fold.norm.fixed is None:
        g_nRC -= (sum_RC / fold.n).to(g_nRC.dtype)
    return sum_RC.double()


def _backward(fold: Fold, z: Sequence[Tensor], gs: Sequence[Tensor], sum_g_MC: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of (W, p, gamma, β, norm, *z); ``gs`` are centred where the statistics are those of the batch."""
    channels = fold.weight.shape[1]
    flat = [by_pixel(z_BCHW, channels) for z_BCHW in z]
    mean_g = _split(sum_g_MC / fold.n, fold.terms)
    # An identity wants g as it was.
    off = [None if t.normalised or fold.norm.fixed is not None else m for t, m in zip(fold.terms, mean_g, strict=True)]
    outer_MCC = torch.cat([_outer(*each) for each in zip(fold.terms, gs, flat, off, strict=True)])
    small = fold.backward(outer_MCC, sum_g_MC)
    Ss = [None] * len(off) if small.S_MCC is None else _split(small.S_MCC, fold.terms)
    dz = [
        as_images(_input_gradient(*each), z_BCHW)
        for z_BCHW, *each in zip(z, fold.terms, gs, flat, off, _split(fold.A_MCC, fold.terms), Ss, strict=True)
    ]
    return (small.weight_MCC, small.p_M, small.scale_MC, small.shift_MC, None, *dz)
