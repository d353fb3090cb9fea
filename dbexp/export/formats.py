"""The formats of a LoRA file: who reads each, and how its files are called, written and loaded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """One format."""

    meaning: str
    """Who reads it."""
    file: str
    """Name of its file; {name} stands for the model's."""
    usage: str
    """How to load it, for the model card; {base}, {subject}, {name}, {pipeline} and {dtype} are filled in."""


FORMATS = {
    "diffusers": Format(
        meaning="what load_lora_weights reads",
        file="pytorch_lora_weights.safetensors",  # the name that it looks for in a folder or repository
        usage="""\
```python
import torch
from diffusers import {pipeline}

pipe = {pipeline}.from_pretrained("{base}", dtype=torch.{dtype}).to("cuda")
pipe.load_lora_weights("THIS_REPOSITORY_OR_FOLDER", weight_name="pytorch_lora_weights.safetensors")
image = pipe("a {subject} in the snow").images[0]
```
""",
    ),
    "kohya": Format(
        meaning="the names of kohya's trainers, ComfyUI and AUTOMATIC1111",
        file="{name}.safetensors",
        usage="""\
`{name}.safetensors` holds the same LoRA under the names of kohya's trainers. ComfyUI: put it into `models/loras` \
and use the node LoraLoader. AUTOMATIC1111: put it into `models/Lora` and write \
`<lora:{name}:1> a {subject} in the snow`.
""",
    ),
}
