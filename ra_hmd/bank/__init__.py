"""The example bank: versions, changes and their impact, search."""
