"""Low-rank experts with a router in the MLPs of a language model (HydraLoRA), with a prior of clusters (SSMoE).

`attach.attach_experts` puts them into a model, `files` saves and loads them.
"""
