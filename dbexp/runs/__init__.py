"""A run's folder: its layout, what is written there, and what is read back."""
