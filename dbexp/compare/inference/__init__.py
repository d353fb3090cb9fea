"""What paired differences between runs say of other prompts, other training seeds and other subjects."""
