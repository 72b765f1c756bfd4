"""From features to scores, thresholds, calibrated probabilities and verdicts."""
