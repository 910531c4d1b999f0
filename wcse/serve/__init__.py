"""The OpenAI-compatible server: one engine thread, an asynchronous front, searches as models."""
