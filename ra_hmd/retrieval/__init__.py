"""Nearest-neighbour search and the KNN vote over embeddings."""
