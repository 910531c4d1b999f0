"""Imitation audit: did a student learn what its teacher can do, or only how it sounds? (arXiv 2305.15717)"""
