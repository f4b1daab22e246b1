"""Settings for the whole suite: slow tests run when the environment has SLOW=1."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from supernet.schema import Config


def pytest_sessionstart(session: pytest.Session) -> None:
    """Compile what a run would compile on first use, before workers and tests do, whose output is looked at."""
    if not hasattr(session.config, "workerinput"):
        from supernet.spaces.banks.build import library

        library()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("SLOW") != "1":
        skip = pytest.mark.skip(reason="slow: set SLOW=1")
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(skip)


@pytest.fixture(params=Config.__dataclass_fields__["engine"].metadata["choices"])
def engine(request: pytest.FixtureRequest) -> str:
    """Every engine."""
    name: str = request.param
    return name


@pytest.fixture(autouse=True)
def close_recorders() -> Iterator[None]:
    """Close what a test's search has opened."""
    yield
    helpers = sys.modules.get("helpers")
    while helpers is not None and helpers.OPEN:
        helpers.OPEN.pop().close()
