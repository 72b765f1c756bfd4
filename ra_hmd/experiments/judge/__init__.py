"""Grading of rationales by a language model (`ra-hmd judge`)."""
