"""Benchmarks: tables of what is known of the architectures of a space."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from supernet.registry import register
from supernet.schema.fields import choice


@dataclass
class Nasbench201TableConfig:
    """NAS-Bench-201 as a table, a row for each of the 15,625 cells, in a CSV file or one compressed with xz. It tells
    the report what the derived cell is worth, and the search nothing."""

    name: str = "nasbench201"
    path: str = MISSING
    # What regret and rank are of: test accuracy after 200 epochs on CIFAR-10, CIFAR-100 or ImageNet16-120.
    metric: str = choice("c10_test_200", "c10_test_200", "c100_test_200", "in16_test_200")


register(
    "benchmark",
    "nasbench201",
    Nasbench201TableConfig,
    "supernet.benchmarks.nasbench201:nasbench201_table",
    needs={"space": ("nasbench201",)},
)


@dataclass
class DigitsTableConfig:
    """Every cell of ``space=digits_cells``, trained on the digits with three seeds; the table ships with the package.
    It tells the report what the derived cell is worth, and the search nothing."""

    name: str = "digits"


register(
    "benchmark",
    "digits",
    DigitsTableConfig,
    "supernet.benchmarks.digits:digits_table",
    needs={"space": ("nasbench201",), "task": ("digits",)},
)
