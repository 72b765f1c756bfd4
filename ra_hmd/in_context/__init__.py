"""Judging memes by showing an LMM labelled ones first."""
