"""Fixtures of the desk: a served one, and a browser that looks at it."""

from chromium import browser
from desks import desk

__all__ = ["browser", "desk"]
