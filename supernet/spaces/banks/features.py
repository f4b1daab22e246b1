"""What the last pointwise product of every operation of a bank reads: depthwise features, pools, the state itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from supernet.spaces.banks.depthwise import depthwise
from supernet.spaces.banks.fold import Affine, Term, hidden
from supernet.spaces.banks.kinds import Block, Chain, Known, Pool, Reduce, Skip
from supernet.spaces.banks.norms import Normed, gather, track, uses_batch, whole
from supernet.spaces.ops import shift


@dataclass
class Group:
    """The same kind of operation on several edges of a bank: their rows, their (decision, option), and what is
    known."""

    rows: list[int] = field(default_factory=list)
    options: list[tuple[int, int]] = field(default_factory=list)
    known: list[Known] = field(default_factory=list)


@dataclass
class Product:
    """One pointwise product for each of ``rows``: its input z, the mean taken off z (None: none was), W as pieces to be
    concatenated to [rows * C, C], and the norms; p is that of ``options``; ``left`` is the mean left on z by rounding;
    ``shared`` and ``pointwise`` are those of :class:`.fold.Term`."""

    rows: list[int]
    options: list[tuple[int, int]]
    z: Tensor
    mean: Tensor | None
    weights: list[Tensor]
    normed: list[Normed]
    shared: bool = False
    pointwise: bool = True
    left: Tensor | None = None

    @property
    def normalised(self) -> bool:
        return self.normed[0].norm is not None


def stack_weights(products: Sequence[Product]) -> Tensor:
    """W of all products, [M, C, C]."""
    weight = torch.cat([piece.flatten(1) for product in products for piece in product.weights])
    return weight.view(-1, weight.shape[1], weight.shape[1])


def norms_of(products: Sequence[Product], weight_MCC: Tensor) -> Affine:
    """What is known of the norms of all products."""
    norm = gather([here for product in products for here in product.normed], weight_MCC)
    if all(product.left is None for product in products):
        return norm
    channels = weight_MCC.shape[1]
    left = [
        weight_MCC.new_zeros(len(product.rows), channels, dtype=torch.float64)
        if product.left is None
        else product.left.view(-1, channels)
        for product in products
    ]
    return replace(norm, left_MC=torch.cat(left))


def follow(products: Sequence[Product], weight_MCC: Tensor, var_MC: Tensor) -> None:
    """Update the running statistics of all norms that track them."""
    normed = [here for product in products for here in product.normed]
    if not any(here.norm is not None and here.norm.training and here.norm.track_running_stats for here in normed):
        return
    channels = weight_MCC.shape[1]
    means = []
    for product in products:
        rows = len(product.rows)
        mean = weight_MCC.new_zeros(1, channels) if product.mean is None else product.mean.view(-1, channels)
        means.append(mean.double().expand(rows, -1))
    mean_MC = (weight_MCC.detach().double() @ torch.cat(means)[..., None])[..., 0]
    z = products[0].z
    track(normed, mean_MC, var_MC, z.numel() // z.shape[1])


class Features:
    """The features of one state, x; what several operations need is computed once."""

    def __init__(self, x_BCHW: Tensor) -> None:
        self.x = x_BCHW
        self._relu: Tensor | None = None
        self._tiled: dict[int, Tensor] = {}

    @property
    def relu(self) -> Tensor:
        if self._relu is None:
            self._relu = torch.relu(self.x)
        return self._relu

    def tiled(self, times: int) -> Tensor:
        """relu(x), its channels repeated."""
        if times not in self._tiled:
            self._tiled[times] = tile(self.relu.detach(), times)
        return self._tiled[times]

    def products(self, groups: Sequence[Group]) -> list[Product]:
        """The last product of every operation; the stages before it are evaluated on the way."""
        chains = [group for group in groups if _length(group) > 0]
        products = [self._first_stage(group) for group in chains]
        stage = 0
        while unfinished := [i for i, group in enumerate(chains) if stage + 1 < _length(group)]:
            stage += 1
            h = activate([products[i] for i in unfinished])
            for i, h_BCHW in zip(unfinished, h, strict=True):
                products[i] = next_stage(chains[i], stage, h_BCHW)
        for group in groups:
            if _length(group) == 0:
                products += self._without_kernels(group)
        return products

    def _first_stage(self, group: Group) -> Product:
        return _product(group, 0, self.relu, self.tiled(len(group.rows)))

    def _without_kernels(self, group: Group) -> list[Product]:
        first = group.known[0]
        channels = self.x.shape[1]
        if isinstance(first, Skip):
            eye = torch.eye(channels, dtype=torch.promote_types(self.x.dtype, torch.float32), device=self.x.device)
            none = Normed(None, 0, channels, channels)
            rows = len(group.rows)
            return [
                Product(
                    group.rows, group.options, self.x, None, [eye] * rows, [none] * rows, shared=True, pointwise=False
                )
            ]
        if isinstance(first, Pool):
            return [self._pool(group, first)]
        return self._reduction(group)

    def _pool(self, group: Group, first: Pool) -> Product:
        norms = [known.norm for known in group.known if isinstance(known, Pool)]
        z_BCHW, mean_C = _centred(first.pool(self.x), uses_batch(norms[0]))
        eye = torch.eye(z_BCHW.shape[1], dtype=torch.promote_types(z_BCHW.dtype, torch.float32), device=z_BCHW.device)
        normed = [whole(norm) for norm in norms]
        return Product(
            group.rows, group.options, z_BCHW, mean_C, [eye] * len(norms), normed, shared=True, pointwise=False
        )

    def _reduction(self, group: Group) -> list[Product]:
        """Two products for each factorized reduction, one for each of its convolutions; their sum is its output."""
        modules = [known.module for known in group.known if isinstance(known, Reduce)]
        products = []
        for second, x_BCHW in enumerate((self.relu, shift(self.relu))):
            z_BCHW = x_BCHW[:, :, ::2, ::2].contiguous(memory_format=torch.channels_last)
            z_BCHW, mean_C = _centred(z_BCHW, uses_batch(modules[0].bn))
            weights, normed = [], []
            for module in modules:
                conv = module.conv_2 if second else module.conv_1
                channels, half = module.bn.num_features, module.conv_1.out_channels
                zeros = conv.weight.new_zeros(channels - conv.out_channels, channels)
                weights += [zeros, conv.weight] if second else [conv.weight, zeros]
                normed.append(Normed(module.bn, half if second else 0, channels if second else half, channels))
            products.append(Product(group.rows, group.options, z_BCHW, mean_C, weights, normed, shared=True))
        return products


def _length(group: Group) -> int:
    """The number of depthwise stages."""
    first = group.known[0]
    return len(first.blocks) if isinstance(first, Chain) else 0


def _blocks(group: Group, stage: int) -> list[Block]:
    return [known.blocks[stage] for known in group.known if isinstance(known, Chain)]


def _centred(z_BCHW: Tensor, centre: bool) -> tuple[Tensor, Tensor | None]:
    """Take the mean off z, as a constant: see :func:`.depthwise.centred_depthwise`."""
    if not centre:
        return z_BCHW, None
    mean_C = z_BCHW.detach().mean((0, 2, 3), dtype=torch.promote_types(z_BCHW.dtype, torch.float32)).to(z_BCHW.dtype)
    return z_BCHW - mean_C[:, None, None], mean_C


def _product(group: Group, stage: int, x_BCHW: Tensor, tiled_BEHW: Tensor) -> Product:
    """The depthwise convolutions of one stage of a group, and what comes after them."""
    blocks = _blocks(group, stage)
    _, stride, dilation = blocks[0].geometry
    weight_E1kk = torch.cat([block.depthwise.weight for block in blocks]).to(x_BCHW.dtype)
    centred = uses_batch(blocks[0].norm)
    z_BCHW, taken_E, left_E = depthwise(x_BCHW, tiled_BEHW, weight_E1kk, stride, dilation, centred)
    weights = [block.pointwise.weight for block in blocks]
    normed = [whole(block.norm) for block in blocks]
    # What a later stage reads is normalised, so that the mean left on its z is nothing.
    left_E = left_E if stage == 0 else None
    return Product(group.rows, group.options, z_BCHW, taken_E, weights, normed, left=left_E)


def next_stage(group: Group, stage: int, h_BCHW: Tensor) -> Product:
    """The next stage of a separable convolution, from the activations of the one before."""
    return _product(group, stage, h_BCHW, h_BCHW.detach())


def activate(products: Sequence[Product]) -> list[Tensor]:
    """relu(BN(W z)) of all products."""
    terms = [Term(tuple(range(len(product.rows)))) for product in products]
    weight_MCC = stack_weights(products)
    norm = norms_of(products, weight_MCC)
    h, var_MC = hidden(terms, [product.z for product in products], weight_MCC, norm)
    follow(products, weight_MCC, var_MC)
    return h


def tile(x_BCHW: Tensor, times: int) -> Tensor:
    """x with its channels repeated ``times`` times, in channels-last format."""
    if times == 1:
        return x_BCHW
    x_BHWC = x_BCHW.permute(0, 2, 3, 1)
    batch, height, width, channels = x_BHWC.shape
    tiled = x_BHWC[:, :, :, None].expand(-1, -1, -1, times, -1).reshape(batch, height, width, times * channels)
    return tiled.permute(0, 3, 1, 2)
