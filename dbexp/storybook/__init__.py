"""Storybook: a small drawn world, its held-out subjects, and how the built-in model is pre-trained on it.

Nothing is imported here: the world needs only Pillow, the trainer needs torch, and each is loaded by who asks for it.
"""
