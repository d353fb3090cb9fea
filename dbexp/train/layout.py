"""What a finished training leaves, file by file: in the store, and by links in the folder of a run."""

LORA = "lora.safetensors"
HISTORY = "history.jsonl"
"""A row of JSON per optimizer step."""
RECORD = "train.json"
"""Seconds, steps, parameters per part."""
CHECKPOINTS = "checkpoints"
"""Folder of the LoRAs on the way."""
