"""Options that commands share."""

from pathlib import Path
from typing import Annotated

import typer

Output = Annotated[Path, typer.Option("--output", help="Where to write.")]

# The vote
TopK = Annotated[int, typer.Option(min=1, help="K, neighbours that vote.")]
Weights = Annotated[str, typer.Option(help="Vote weights: arithmetic, mean or similarity.")]
MinSimilarity = Annotated[
    float | None, typer.Option(help="Neighbours below this cosine do not vote; without any, abstain.")
]
Prior = Annotated[bool, typer.Option("--prior-correction", help="Let the bank's classes weigh the same.")]
Thresholds = Annotated[str, typer.Option(help="stored (beside the head, if there) or official.")]

# What a head stands on
Backbone = Annotated[str | None, typer.Option(help="Stage 1 run or encoder, if not where the head says.")]
BaseModel = Annotated[str | None, typer.Option(help="Where the base model lies now.")]
DType = Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")]

Final = Annotated[bool, typer.Option("--final", help="Open test splits; each opening is recorded.")]

# Verdicts and rationales
Bank = Annotated[
    str | None, typer.Option(help="Labelled examples: a feature store, or an example bank (folder or URI).")
]
Policy = Annotated[Path | None, typer.Option(help="Text file with your rules, for rationales (docs/explain.md).")]
Neighbours = Annotated[int, typer.Option(min=0, help="So many of the nearest examples are in a rationale's question.")]
Memes = Annotated[list[Path] | None, typer.Option(help="Data of the bank's memes, for captions and pictures.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest rationale, in tokens.")]
