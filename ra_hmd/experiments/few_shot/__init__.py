"""Few-shot study of SSMoE and its baselines (`ra-hmd few-shot`)."""
