"""Synthetic memes: confounders whose label needs image and caption together."""
