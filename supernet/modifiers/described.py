"""What modifiers of the space share."""

from __future__ import annotations

import dataclasses
from typing import Any

from supernet.errors import UserError
from supernet.interfaces import SearchSpace


def edited(space: SearchSpace, modifier: str, **fields: Any) -> SearchSpace:
    """The description with other values in ``fields``; refuses a space that has no such field."""
    description: Any = space
    known = set(getattr(space, "__dataclass_fields__", ()))
    if not set(fields) <= known:
        raise UserError(
            f"modifier={modifier}: a {type(space).__name__} does not know {', '.join(sorted(set(fields) - known))}; "
            f"choose another space, or leave {modifier} out"
        )
    changed: SearchSpace = dataclasses.replace(description, **fields)
    return changed
