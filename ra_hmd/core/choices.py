"""Choices that settings and options share, apart from the modules that implement them, which take long to import."""

from typing import Literal

DType = Literal["auto", "float32", "bfloat16", "float16"]
"""Precision of a model."""

Head = Literal["lmh", "lrc", "rkc", "krr"]
"""The heads: language-model head, logistic-regression classifier, retrieval-based KNN classifier, kernel ridge
regression over the bank.
"""

EngineKind = Literal["auto", "transformers", "vllm"]
"""Engine that generates text."""

VoteWeights = Literal["arithmetic", "mean", "similarity"]
"""Weights of the neighbours in a vote (see `Voting`)."""
