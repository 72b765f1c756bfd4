"""Storage backends of the example bank."""
