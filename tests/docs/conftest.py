"""Fixtures of the tests of the documentation."""

from chromium import browser
from documented_walk import prepared, walk, walked

__all__ = ["browser", "prepared", "walk", "walked"]
