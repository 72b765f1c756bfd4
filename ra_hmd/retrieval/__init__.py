"""Nearest-neighbour search, the vote of labelled neighbours, and the example bank that keeps them."""
