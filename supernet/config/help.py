"""The text of ``--help``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from supernet.config.composing import options

_EXAMPLES = {
    "train": """\
  +experiment=darts_digits                     a small search on embedded data, minutes on a laptop
  +experiment=darts_cifar                      the published recipe of DARTS on CIFAR-10
  +experiment=darts_cifar task=image_folder task.root=DIR   the same on DIR/train/<class>/*, DIR/test/<class>/*
  +experiment=darts_cifar debug=fast           the same, shrunk to seconds: does everything work?
  +experiment=darts_digits update=unrolled seed=3           any part, any value
  +experiment=darts_digits run_dir=DIR resume=auto          go on where an interrupted run stopped
  -m +experiment=darts_digits seed=0,1,2       one run for each value, in run_dir/<job>""",
    "retrain": """\
  +experiment=darts_cifar genotype=DARTS_V2    a published genotype by name
  +experiment=darts_digits genotype=FILE       a saved one: genotype.json of a run, or published Genotype(...) text""",
}

_TEXT = """\
{summary}

Usage: python -m supernet.{name} [OPTION...] [KEY=VALUE...]

Commands to begin with:
{examples}

Parts, chosen with GROUP=NAME (+experiment=NAME; 'modifier=[NAME,NAME]' takes any number):
{groups}

Options:
  --cfg job          print the complete configuration that would run, and stop
  --config-dir DIR   also look for YAML files in DIR, laid out like conf/: DIR/experiment/mine.yaml
  -m                 multirun: KEY=A,B runs once for each value
  --hydra-help       what else Hydra understands
  --version
Own parts in Python: 'plugins=[my_package.parts]' imports the module that registers them.
Tab completion for bash: eval "$(supernet-{name} -sc install=bash)"
"""


def help_text(run: Callable[..., Any]) -> str:
    """The help of the command that calls ``run``."""
    name = run.__name__
    summary = (inspect.getdoc(run) or name).split("\n\n")[0]
    groups = "\n".join(f"  {group:<12} {', '.join(names)}" for group, names in options().items())
    return _TEXT.format(summary=summary, name=name, examples=_EXAMPLES.get(name, "  --help"), groups=groups).rstrip()
