"""Stage 7, runs side by side: all of it is read back from their folders, so a table can be made at any time."""
