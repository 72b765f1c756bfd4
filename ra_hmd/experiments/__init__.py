"""Experiments over many runs, and the demo."""
