"""Hidden states by vLLM's pooling runner, in a process of its own or behind its HTTP API, and the heads on them."""
