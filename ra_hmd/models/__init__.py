"""Models: heads, fusion, losses, the LMM classifier, CLIP encoders, checkpoints."""
