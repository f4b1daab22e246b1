"""Settings for the whole suite: slow tests run when the environment has SLOW=1."""

from __future__ import annotations

import os

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("SLOW") != "1":
        skip = pytest.mark.skip(reason="slow: set SLOW=1")
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(skip)
