"""Verdicts on memes: of a feature store, or as they come."""
