"""Modifiers: each adds one thing at one place of the arrow."""
