"""What a run needs from its machine: keyed randomness, safe files, checkpoints, signals, devices, several processes."""
