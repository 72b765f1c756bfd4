"""Retrieval-augmented hateful-meme detection with large multimodal models."""

from ra_hmd.core.privacy import keep_private

__version__ = "0.1.0"

keep_private()
