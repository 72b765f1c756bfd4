"""Exact nearest-neighbour search over an example bank, and the vote of its labels."""
