"""Compute-optimal choice: how hard is a problem, and which strategy pays for such problems at a budget."""
