"""Retrieval-augmented hateful-meme detection with large multimodal models.

The public names are imported when they are first used (see `ra_hmd.api`), so that `import ra_hmd` is fast.
"""

import importlib
from typing import Any

from ra_hmd.core.privacy import keep_private

__version__ = "0.1.0"
__all__ = ["Bank", "Detector", "Features", "Meme", "Verdict", "__version__", "create_bank", "evaluate", "extract"]

keep_private()


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("ra_hmd.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
