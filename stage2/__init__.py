"""Stage 2: retrieval-guided refinement of the head on frozen features."""
