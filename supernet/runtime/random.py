"""Random streams keyed by (seed, stream, counters): every draw can be repeated without replaying those before it.

Nothing here is state: a step asks for the generator of its own number, so a resumed run draws what an uninterrupted one
does, and one part drawing more than before changes no other part's stream.
"""

from __future__ import annotations

import hashlib
import json
import operator
import random

import numpy as np
import torch

_LOW_32 = 0xFFFF_FFFF


def key(seed: int, stream: str, *counters: int) -> int:
    """The number of a stream at given counters (epoch, step, ...): 63 bits, the same on every platform and Python.

    >>> key(0, "alpha", 7)
    8530787128917149981
    """
    # JSON, because joining with a separator would let a stream's name imitate a counter.
    name = json.dumps([operator.index(seed), stream, *map(operator.index, counters)])
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, stream: str, *counters: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator at the start of a stream. Devices differ in their numbers: draw on the CPU what must agree."""
    return torch.Generator(device=device).manual_seed(key(seed, stream, *counters))


def reseed(seed: int, stream: str, *counters: int) -> None:
    """Key the global state of random, NumPy and torch (all devices), for whatever a user's module draws by itself.

    Meant for the start of every step: tens of microseconds, and no device is waited for.
    """
    number = key(seed, stream, *counters)
    random.seed(number)
    np.random.seed(number & _LOW_32)  # the legacy global state takes 32 bits
    # Not torch.manual_seed: it walks every backend and formats a stack trace where CUDA is absent, ten times the price.
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(number)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(number)
