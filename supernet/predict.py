"""Use a trained child: ``python -m supernet.predict run=DIR IMAGE...``"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from supernet.arguments import import_named, read_arguments, run_command
from supernet.errors import UserError

USAGE = """python -m supernet.predict run=DIR IMAGE...

Classify images with the child that a run has trained: DIR is the run's directory.
A child with operations of your own needs the modules that register them: 'plugins=[my_package.parts]'.
Prints, for each image, its name, the most probable class and its probability, separated by tabs.
In Python: supernet.load_child(DIR).predict(FILES)."""

KEYS = ("run", "plugins")


def predict(run: str, files: Sequence[str]) -> list[tuple[str, str, float]]:
    """(file, most probable class, its probability) of each image file."""
    from supernet.child import load_child

    child = load_child(run)
    found = []
    for file in files:
        (probabilities,) = child.predict([file])
        best = max(probabilities, key=probabilities.__getitem__)
        found.append((file, best, probabilities[best]))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    return run_command(USAGE, _lines, arguments)


def _lines(arguments: Sequence[str]) -> str:
    given, files = read_arguments("predict", KEYS, arguments, files=True)
    import_named(given)
    if "run" not in given or not files:
        raise UserError("give one run=DIR and at least one image: python -m supernet.predict run=DIR IMAGE...")
    return "\n".join(f"{file}\t{name}\t{p:.3f}" for file, name, p in predict(given["run"], files))


if __name__ == "__main__":
    sys.exit(main())
