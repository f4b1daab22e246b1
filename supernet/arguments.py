"""The commands that use a run, and their arguments: ``key=value``, and for some of them files beside."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence

from supernet.errors import UserError, tell


def run_command(usage: str, run: Callable[[Sequence[str]], str], given: Sequence[str] | None) -> int:
    """Print what ``run(arguments)`` returns, or the usage where it is asked for or nothing is given; the exit code."""
    arguments = sys.argv[1:] if given is None else given
    if not arguments or "--help" in arguments or "-h" in arguments:
        print(usage)
        return 0 if arguments else 2
    try:
        print(run(arguments))
    except (Exception, KeyboardInterrupt) as error:
        return tell(error)
    return 0


def read_arguments(
    command: str, keys: Collection[str], arguments: Sequence[str], *, files: bool = False
) -> tuple[dict[str, str], list[str]]:
    """The values by key, and the arguments without one, where there may be ``files``. Raises UserError."""
    given: dict[str, str] = {}
    others = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in keys:
            if not files:
                valid = [f"{k}=" for k in keys]
                raise UserError(f"{argument!r} is not an argument of {command}", valid=valid, got=f"{key}=")
            others.append(argument)
        elif not value or key in given:
            raise UserError(f"{argument}: give {key} once, with a value")
        else:
            given[key] = value
    return given, others


def import_named(given: Mapping[str, str]) -> None:
    """Import the modules of ``plugins=[...]``, where it is given: they register parts that a run may name."""
    if "plugins" in given:
        from supernet.config.overrides import import_plugins, parse, plugins_named

        import_plugins(plugins_named(parse([f"plugins={given['plugins']}"])))
