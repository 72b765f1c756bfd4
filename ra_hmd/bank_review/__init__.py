"""Review of a bank: rows whose labels are doubtful or without effect, and unlabelled memes that are worth labels."""
