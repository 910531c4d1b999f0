"""Language models: one decoder that a ``ModelSpec`` drives, and the loaders that fill it.

``load.load_model`` is the entry point. Nothing here knows of search, sampling or scheduling.
"""
