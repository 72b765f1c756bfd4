"""Losses of Stage 2, one per file: tensors in, tensor out."""
