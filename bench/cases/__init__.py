"""One module per op: its providers, and the check each must pass before it is timed."""
