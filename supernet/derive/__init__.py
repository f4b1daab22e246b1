"""Derivations: how the result of a search becomes one architecture."""
