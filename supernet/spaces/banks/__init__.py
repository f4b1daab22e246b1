"""The fast engine: the mathematics of the plain cell, evaluated in banks. :mod:`.bank` says how it hangs together."""

from supernet.spaces.banks.bank import BankedFanOut
from supernet.spaces.banks.prepare import Prepare

__all__ = ["BankedFanOut", "Prepare"]
