"""What stands before and behind a prompt where one of Qwen's models that see reads it: the pipelines' words, which the
denoisers were taught with."""

BEFORE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
AFTER = "<|im_end|>\n<|im_start|>assistant\n"
DROPPED = 34
"""Tokens of `BEFORE`, whose states no denoiser reads."""
