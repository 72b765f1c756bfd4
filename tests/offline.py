"""Environment of all tests, set when this is imported: before any library that reads it once."""

import os

os.environ.setdefault("LLAMAFACTORY_VERBOSITY", "WARN")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
