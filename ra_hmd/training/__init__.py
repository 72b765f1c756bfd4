"""Training a head on stored features: what Hate-CLIPper's training and Stage 2 have in common, and the former."""
