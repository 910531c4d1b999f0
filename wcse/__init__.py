"""wcse: the Weak-Cheap Search Engine."""
