"""The fast engine: the mathematics of the plain cell, evaluated in banks. :mod:`.bank` says how it hangs together."""

from supernet.spaces.banks.bank import BankedFanOut

__all__ = ["BankedFanOut"]
