"""Stage `sft-classifier`: language loss plus a classification head (RA-HMD, Stage 1)."""
