"""The verifier side: process reward models that score a step as soon as it is written."""
