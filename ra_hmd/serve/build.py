"""The name of the build that serves."""

import json
import os
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution

BUILD = "RA_HMD_BUILD"
"""Environment variable with the name of the build, such as a commit."""


def build_name() -> str | None:
    """Name of the build: of the environment, else the commit that pip installed from, if it did."""
    if named := os.environ.get(BUILD):
        return named
    with suppress(PackageNotFoundError, ValueError, KeyError, TypeError):
        commit: str = json.loads(distribution("ra-hmd").read_text("direct_url.json") or "{}")["vcs_info"]["commit_id"]
        return commit
    return None
