"""Modifiers: what a method adds to the arrow, each at one place."""

from __future__ import annotations
