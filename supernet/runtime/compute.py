"""How numbers are computed: precision, determinism, compilation. What each buys and costs is in docs/performance.md."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from torch import nn

_log = logging.getLogger(__name__)

MEMORY_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A context in which products are computed in ``precision``: ``bf16`` by autocast, ``fp32`` as they stand."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def set_deterministic(on: bool) -> None:
    """Ask torch for algorithms that give the same bits each time, or for the fastest; concerns GPUs only.

    On one machine with one number of threads, a CPU gives the same bits either way.
    """
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS wants for it
    torch.use_deterministic_algorithms(on)
    torch.backends.cudnn.benchmark = not on


def compile_in_place(net: nn.Module) -> None:
    """Compile a network's forward pass, keeping its state_dict keys; one warning and no more where that fails."""
    net.compile()
    compiled: Any = net._compiled_call_impl

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return compiled(*args, **kwargs)
        except (RuntimeError, ImportError) as error:  # no compiler, or one that cannot compile this
            if net._compiled_call_impl is call:
                _log.warning("compile=true: going on without, since the compiler failed: %s", str(error).split("\n")[0])
                net._compiled_call_impl = None
            return net(*args, **kwargs)

    net._compiled_call_impl = call
