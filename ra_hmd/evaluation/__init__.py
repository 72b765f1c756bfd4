"""Evaluation of heads on labelled feature stores."""
