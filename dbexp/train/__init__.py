"""Stage 3: one loop trains K lanes on a frozen base."""
