"""Stages 2 and 4: images from the base model, with a LoRA or without."""
