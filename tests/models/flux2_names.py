"""What LoRA files call the layers of FLUX.2."""

from __future__ import annotations

# What ComfyUI calls layers of FLUX.2 in LoRA files, read in its comfy/lora.py and comfy/utils.py: after `lora_unet_`
# the names of the original checkpoint, with underscores; after `transformer.` those of diffusers.
KOHYA = (
    "double_blocks_{n}_img_attn_qkv",
    "double_blocks_{n}_img_attn_proj",
    "single_blocks_{n}_linear1",
    "single_blocks_{n}_linear2",
)
DIFFUSERS = (
    "transformer_blocks.{n}.attn.to_q",
    "transformer_blocks.{n}.attn.to_k",
    "transformer_blocks.{n}.attn.to_v",
    "transformer_blocks.{n}.attn.to_out.0",
    "single_transformer_blocks.{n}.attn.to_qkv_mlp_proj",
    "single_transformer_blocks.{n}.attn.to_out",
)
COMFY = {
    ("kohya", "attention"): KOHYA,
    ("kohya", "linear"): (
        *KOHYA,
        "double_blocks_{n}_img_mlp_0",
        "double_blocks_{n}_img_mlp_2",
        "double_blocks_{n}_txt_attn_qkv",
        "double_blocks_{n}_txt_attn_proj",
        "double_blocks_{n}_txt_mlp_0",
        "double_blocks_{n}_txt_mlp_2",
    ),
    ("diffusers", "attention"): DIFFUSERS,
    ("diffusers", "linear"): (
        *DIFFUSERS,
        "transformer_blocks.{n}.attn.add_q_proj",
        "transformer_blocks.{n}.attn.add_k_proj",
        "transformer_blocks.{n}.attn.add_v_proj",
        "transformer_blocks.{n}.attn.to_add_out",
        "transformer_blocks.{n}.ff.linear_in",
        "transformer_blocks.{n}.ff.linear_out",
        "transformer_blocks.{n}.ff_context.linear_in",
        "transformer_blocks.{n}.ff_context.linear_out",
    ),
}
KEYS = {
    "kohya": ("lora_unet_{}.lora_down.weight", "lora_unet_{}.lora_up.weight", "lora_unet_{}.alpha"),
    "diffusers": ("transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight"),
}


def comfy_keys(format: str, preset: str) -> set[str]:
    """Keys that ComfyUI finds in the file of a preset, for two blocks of each kind."""
    layers = [name.format(n=number) for name in COMFY[format, preset] for number in range(2)]
    return {key.format(layer) for layer in layers for key in KEYS[format]}
