"""Retrieval-augmented hateful-meme detection with large multimodal models."""

__version__ = "0.1.0"
