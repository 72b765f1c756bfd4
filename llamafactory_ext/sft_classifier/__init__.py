"""Stage `sft-classifier`: language loss plus a classification head (RA-HMD, Stage 1)."""

from llamafactory_ext.sft_classifier.workflow import run_sft_classifier

__all__ = ["run_sft_classifier"]
