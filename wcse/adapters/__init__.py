"""Doors for other tools: one file each, imported by nobody here, and only when that tool is installed."""
