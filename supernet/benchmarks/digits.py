"""The table that ships with the package: all 125 cells of ``space=digits_cells``, trained on scikit-learn's digits with
three seeds by ``tools/digits_truth.py``."""

from __future__ import annotations

from pathlib import Path

from supernet.benchmarks.nasbench201 import CellTable
from supernet.interfaces import SearchSpace
from supernet.schema.benchmarks import DigitsTableConfig

FILE = Path(__file__).with_name("digits_cells.csv")


def digits_table(config: DigitsTableConfig, *, space: SearchSpace) -> CellTable:
    """Regret and rank are of ``test``, the test accuracy in % after training from scratch, mean over the seeds."""
    return CellTable(FILE, "test", space, f"benchmark={config.name}")
