"""Fields of a schema that know what they may be; checked once after composing (``supernet.config.check``)."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def _bounds(**bounds: float | None) -> dict[str, Any]:
    return {name: bound for name, bound in bounds.items() if bound is not None}


def ranged(
    default: Any, *, ge: float | None = None, gt: float | None = None, le: float | None = None, lt: float | None = None
) -> Any:
    """A field with bounds, checked once after composing (``supernet.config.check``)."""
    return field(default=default, metadata=_bounds(ge=ge, gt=gt, le=le, lt=lt))


def choice(default: str, *choices: str) -> Any:
    """A field that takes one of a few words."""
    return field(default=default, metadata={"choices": choices})


def worded(default: str, pattern: str, meaning: str) -> Any:
    """A text field that must match ``pattern`` as a whole; ``meaning`` says so to people."""
    return field(default=default, metadata={"pattern": pattern, "meaning": meaning})


def listed(
    *default: Any, length: int | None = None, unique: bool = False, ge: float | None = None, lt: float | None = None
) -> Any:
    """A list field; bounds hold for its elements, ``unique`` also asks for at least one."""
    metadata = _bounds(length=length, ge=ge, lt=lt) | ({"unique": True} if unique else {})
    return field(default_factory=lambda: list(default), metadata=metadata)
