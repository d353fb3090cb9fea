"""What the command `dbexp` does: one run, a sweep, and what is shown meanwhile."""
