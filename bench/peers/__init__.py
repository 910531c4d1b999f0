"""The same work by wcse and by the engines a user would pick instead, taking turns in one run.

``python -m bench.peers`` runs them. Each side is a small process of its own, in its own virtual environment, that
loads once and then works on command (``sides/``); the driver alone knows of rounds, and the report of ratios.
"""
