"""Tasks: what is learned, from which data."""
