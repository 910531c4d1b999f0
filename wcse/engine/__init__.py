"""The policy side: KV spans, the batched loop, the driver of searches, and the LLM surface."""
