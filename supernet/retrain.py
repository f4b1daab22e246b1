"""Retrain and test a genotype, without a search: ``python -m supernet.retrain +experiment=darts_cifar
genotype=DARTS_V2``."""

from __future__ import annotations

from supernet.config import entry
from supernet.train import retrain

main = entry(retrain)

if __name__ == "__main__":
    main()
