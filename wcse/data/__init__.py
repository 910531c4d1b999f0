"""What a run leaves behind: the journal, and the tables derived from it."""
