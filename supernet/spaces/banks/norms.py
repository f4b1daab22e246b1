"""The batch norms of all edges of a bank as one norm over all their channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from supernet.spaces.banks.kinds import Known


class Norms:
    """R norms with the same settings, of C channels each, as one of E = R * C channels."""

    def __init__(self, norms: Sequence[nn.BatchNorm2d]) -> None:
        self.norms = tuple(norms)
        self.eps = norms[0].eps
        self.affine = norms[0].affine
        self.training, self.momentum = norms[0].training, norms[0].momentum or 0.0
        self.uses_batch = norms[0].training or norms[0].running_mean is None

    @classmethod
    def of(cls, known_R: Sequence[Known]) -> Norms | None:
        """The last norms of one kind of operation on R edges; None where it has none."""
        norms = [known.norms[-1] for known in known_R if known.norms]
        return cls(norms) if norms else None

    def gamma_E(self) -> Tensor | None:
        """The scales."""
        return torch.cat([norm.weight for norm in self.norms]) if self.affine else None

    def beta_E(self) -> Tensor | None:
        """The shifts."""
        return torch.cat([norm.bias for norm in self.norms]) if self.affine else None

    def running(self) -> tuple[Tensor, Tensor]:
        """mean_E and var_E as tracked until now."""
        means = [norm.running_mean for norm in self.norms if norm.running_mean is not None]
        variances = [norm.running_var for norm in self.norms if norm.running_var is not None]
        return torch.cat(means), torch.cat(variances)

    def before(self, y_BEHW: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """What a batch-norm kernel takes as running mean and variance: the tracked ones, or, where the norm uses the
        batch, new ones that the kernel (at momentum 1) fills with mean and unbiased variance for :meth:`track`.

        None where nobody tracks them, except for low precision, where the kernel takes from them that statistics are
        in float32.
        """
        if not self.uses_batch:
            return self.running()
        if y_BEHW.numel() == y_BEHW.shape[1]:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {y_BEHW.shape}")
        dtype = torch.float64 if y_BEHW.dtype == torch.float64 else torch.float32
        if self.norms[0].running_mean is None and y_BEHW.dtype == dtype:
            return None, None
        mean_E, var_E = y_BEHW.new_zeros(2, y_BEHW.shape[1], dtype=dtype).unbind()
        return mean_E, var_E

    @torch.no_grad()
    def track(self, mean_C: Tensor | None, var_C: Tensor | None) -> None:
        """Move the running statistics towards those of a batch, as batch norm does (the variance without bias), where
        they are tracked. Of E channels, or of C where all norms see the same map."""
        means = [norm.running_mean for norm in self.norms if norm.running_mean is not None]
        variances = [norm.running_var for norm in self.norms if norm.running_var is not None]
        counts = [norm.num_batches_tracked for norm in self.norms if norm.num_batches_tracked is not None]
        if not self.training or not means or mean_C is None or var_C is None:
            return
        parts = mean_C.numel() // means[0].numel()
        seen = [part for t_C in (mean_C, var_C) for part in t_C.chunk(parts) * (len(means) // parts)]
        torch._foreach_lerp_([*means, *variances], seen, self.momentum)
        torch._foreach_add_(counts, 1)

    def track_batch(self, moments: Tensor, y_BHWC: Tensor) -> None:
        """:meth:`track` by the moments (mean, variance, 1 / sigma: [3, C]) of a map. Raises ValueError for one value a
        channel, as batch norm does."""
        count = y_BHWC.numel() // y_BHWC.shape[-1]
        if count < 2:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {y_BHWC.shape}")
        if self.norms[0].running_mean is not None:
            self.track(moments[0], moments[1] * (count / (count - 1)))
