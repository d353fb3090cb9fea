"""Variables of the environment that overrule a config: a message that does not name them sends people astray."""

from __future__ import annotations

import os

_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_TRUE = ("1", "ON", "YES", "TRUE")  # as huggingface_hub reads them
_DEVICES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


def hub_switched_off() -> str:
    """Which variable keeps the Hugging Face hub from being asked, as `HF_HUB_OFFLINE=1 forbids it`; empty for none."""
    for name in _OFFLINE:
        if os.environ.get(name, "").upper() in _TRUE:
            return f"{name}={os.environ[name]} forbids to ask the hub, and it is not on this machine"
    return ""


def devices_hidden() -> str:
    """Which variables choose the GPUs that this process sees, such as `CUDA_VISIBLE_DEVICES= hides every GPU`."""
    chosen = [name for name in _DEVICES if name in os.environ]
    for name in chosen:
        if os.environ[name].strip() in ("", "-1"):
            return f"{name}={os.environ[name]} hides every GPU"
    return ", ".join(f"{name}={os.environ[name]} chooses which GPUs there are" for name in chosen)
