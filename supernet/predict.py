"""Use a trained child: ``python -m supernet.predict run=DIR IMAGE...``"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from supernet.errors import UserError

USAGE = """python -m supernet.predict run=DIR IMAGE...

Classify images with the child that a run has trained: DIR is the run's directory.
A child with operations of your own needs the modules that register them: 'plugins=[my_package.parts]'.
Prints, for each image, its name, the most probable class and its probability, separated by tabs.
In Python: supernet.load_child(DIR).predict(FILES)."""


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
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or "--help" in arguments or "-h" in arguments:
        print(USAGE)
        return 0 if arguments else 2
    runs = [a.removeprefix("run=") for a in arguments if a.startswith("run=")]
    plugins = [a for a in arguments if a.startswith("plugins=")]
    files = [a for a in arguments if not a.startswith(("run=", "plugins="))]
    try:
        if plugins:
            from supernet.config.overrides import import_plugins, parse, plugins_named

            import_plugins(plugins_named(parse(plugins)))
        if len(runs) != 1 or not files:
            raise UserError("give one run=DIR and at least one image: python -m supernet.predict run=DIR IMAGE...")
        for file, name, probability in predict(runs[0], files):
            print(f"{file}\t{name}\t{probability:.3f}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return UserError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
