"""Rationales, scored against human references by a language model."""
