"""The parameters of an experiment: one dataclass per config group, the string under a field its documentation.

`dbexp --help` prints these strings, with the bounds and choices beside them. Rules that concern several fields are in
`dbexp.config.check`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from dbexp.config.families import FAMILIES, SAMPLERS, SITES
from dbexp.config.fields import NAME, PATH, PROMPT, Text, bounded, choice, newer, text

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
SOURCES = {
    "folder": "the files in `path`",
    "dreambooth": "subject `name` of the DreamBooth dataset",
    "storybook": "a drawn subject",
}
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "polynomial")
QUANTISATIONS = {
    "fp8": "8 bits for linear layers, on any device but mps",
    "nf4": "4 bits; needs bitsandbytes and a GPU",
}
OPTIMIZERS = {
    "adamw": "",
    "adamw8bit": "needs bitsandbytes and a GPU",
    "prodigy": "needs prodigyopt; its usual lr is 1",
}
REMAINDERS = {
    "carry": "the next epoch fills them up",
    "step": "they make one, still divided by grad_accum, as in scripts on accelerate",
}
COMPILE = {
    "none": "no",
    "blocks": "the blocks that it repeats, each kind once: a minute or so",
    "model": "the whole of it, which takes minutes",
}
GRAPHS = {
    "off": "operation by operation",
    "auto": "where it can be recorded; the log says where not",
}
TIMES = {
    "checkpoint": "as is usual for the family",
    "uniform": "every amount alike",
    "logit_normal": "a share that is the sigmoid of a normal number",
}
BY_RESOLUTION = "resolution"
"""Value of train.shift."""
INTERPOLATIONS = ("bilinear", "bicubic", "lanczos")
CROPS = {"center": "", "random": "", "none": "pictures must then be square"}
LANES = {
    "auto": "on a CPU as merged; on a GPU as many as memory has room for, class images too, as beside where that is faster",
    "merged": "batch_size of one run, whose LoRA is merged into the weights meanwhile",
    "beside": "also those of several runs of a pack, whose LoRAs are beside the weights",
}
LPIPS_NETS = ("alex", "vgg", "squeeze")
LPIPS_LEAST = {"alex": 31, "vgg": 16, "squeeze": 17}
"""Pixels a side below which a layer of the trunk has no output."""
MOST_STEPS, MOST_SAMPLING_STEPS, MOST_IMAGES, MOST_AT_ONCE = 100_000_000, 10_000, 100_000, 10_000
MOST_SEED = 2**63 - 1
DEVICE, WORDS, NEGATIVE = Text(most=40, empty=False), Text(most=200), Text(most=PROMPT.most, lines=True)
TRACKING_MODES = {"offline": "a run folder to upload later", "online": "live", "disabled": "none"}


@dataclass
class ModelConfig:
    """The frozen base model, a checkpoint of one family."""

    name: str = text(MISSING, NAME)
    """Short name in tables, run names and tags."""
    family: str = choice("sd", {name: family.title for name, family in FAMILIES.items()})
    """Which module of dbexp/models understands the checkpoint."""
    path: str = text(MISSING, PATH)
    """Hub id, local pipeline folder, single .safetensors/.ckpt file, or 'random' for small random weights made on the spot."""
    revision: str | None = text(None, NAME)
    """Branch, tag or commit on the hub; null: the default branch."""
    variant: str | None = text(None, NAME)
    """Weight file variant such as fp16; null: the plain files."""
    vae: str | None = text(None, PATH)
    """Hub id or folder of another VAE; null: the checkpoint's own."""
    single_file_config: str | None = text(None, PATH)
    """For a single file: hub id or local folder of the pipeline whose configuration it has; null: diffusers finds out."""
    resolution: int = bounded(512, at_least=8, most=8192)
    """Width and height in pixels of training images and samples."""
    precision: str = choice("auto", PRECISIONS)
    """Of the frozen weights and of what is computed with them; auto: bf16 or fp16 on a GPU that has it, else fp32. LoRA weights are always fp32."""
    quantize: str | None = newer(choice(None, QUANTISATIONS), neutral=None)
    """Store the denoiser's frozen weights in fewer bits, while all is computed in `precision`; null: no."""
    training_lora: str | None = newer(text(None, PATH), neutral=None)
    """LoRA file of any trainer, or owner/name/FILE of the hub, that is merged into the base while it trains and at no other time: it lets a distilled checkpoint be trained. null: none."""
    sample_path: str | None = newer(text(None, PATH), neutral=None)
    """Another checkpoint of the same architecture that draws samples, class samples and the base model's row, as a distilled one does; `path` trains, and draws the prior images. null: `path` does all."""
    device: str = text("auto", DEVICE)
    """cpu, cuda, mps or cuda:1; auto: what accelerate finds."""
    deterministic: bool = newer(False, neutral=False)
    """On a GPU, compute with operations alone that give the same bits each time on one card, which takes longer; one that cannot is an error. A CPU always does."""
    label: str | None = None
    """Printed beside every number when the weights do not allow comparison with published figures; null: nothing."""


@dataclass
class DatasetConfig:
    """The subject: a handful of photographs, its token and its class."""

    name: str = text(MISSING, NAME)
    """Short name in tables, run names and tags."""
    source: str = choice("folder", SOURCES)
    """Where the pictures come from."""
    path: str | None = text(None, PATH)
    """Folder of the subject's pictures; null: found through `root` or `hub`."""
    root: str | None = text(None, PATH)
    """Local copy of the DreamBooth dataset, one folder per subject; null: the hub."""
    hub: str = text("google/dreambooth", PATH)
    """Hub dataset that holds the subject's folder when neither `path` nor `root` is given."""
    token: str = text("sks", WORDS)
    """The rare word that comes to mean the subject; best if it is one token of the text encoder."""
    class_noun: str = text(MISSING, WORDS)
    """What the subject is an instance of, as a prompt says it: dog, backpack, stuffed animal."""
    live: bool = MISSING
    """true: sample the paper's live prompts (outfits, accessories); false: its object prompts."""
    prompt: str = text("a photo of {token} {class}", PROMPT)
    """Caption of every training picture of the subject."""


@dataclass
class LoraConfig:
    """Low-rank adapters (Hu et al., arXiv 2106.09685): which layers get one, and how large."""

    rank: int = bounded(16, at_least=1, most=16_384)
    """Rank r of every adapter."""
    alpha: float | None = bounded(None, above=0, most=1e6)
    """The update is scaled by alpha / rank; null: alpha = rank, so scale 1."""
    sites: str = choice("attention", SITES)
    """Layers of the denoiser that are adapted."""
    text_encoder: bool = False
    """Also adapt q, k, v, out of the text encoder."""
    text_encoder_rank: int | None = bounded(None, at_least=1, most=16_384)
    """Rank in the text encoder; null: `rank`."""
    init: str | None = newer(text(None, PATH), neutral=None)
    """LoRA file of any trainer that training starts from, at its strength; what it lacks of `rank` and `sites` starts fresh. null: all does."""
    path: str | None = newer(text(None, PATH), neutral=None)
    """LoRA file of any trainer that is drawn and measured as it is: nothing is trained, and no other setting of lora, lr_schedule, prior and train matters. null: the run trains its own."""


@dataclass
class LrScheduleConfig:
    """Learning rate over time, as a factor of train.lr (and of train.text_encoder_lr alike)."""

    name: str = choice("constant", SCHEDULES)
    """Shape of the curve."""
    warmup_steps: int = bounded(0, at_least=0, most=MOST_STEPS)
    """Optimizer steps of linear warm-up from 0; `constant` ignores it."""
    horizon: int | None = bounded(None, at_least=1, most=MOST_STEPS)
    """Optimizer steps after which the decay is complete; null: train.steps."""
    power: float = bounded(1.0, at_least=0, most=100)
    """Exponent of polynomial decay."""
    lr_end: float = bounded(1e-7, at_least=0, most=100)
    """Final learning rate of polynomial decay."""


@dataclass
class PriorConfig:
    """Prior preservation (DreamBooth, section 3.2): pictures of the class, made by the base model, trained alongside."""

    weight: float = bounded(1.0, at_least=0, most=1e6)
    """Weight lambda of the class loss; 0: no prior preservation and no class images."""
    count: int = bounded(200, at_least=1, most=MOST_IMAGES)
    """Number of class images."""
    prompt: str = text("a photo of {class}", PROMPT)
    """Prompt of the class images, and their caption in training."""
    path: str | None = text(None, PATH)
    """Folder of your own class images; null: the base model makes them."""
    use_all: bool = False
    """With `path`: true takes every picture of the folder, false the first `count`."""
    steps: int = bounded(50, at_least=1, most=MOST_SAMPLING_STEPS)
    """Sampling steps per class image."""
    guidance_scale: float = bounded(7.5, at_least=0, most=1000)
    """Classifier-free guidance of the class images."""
    sampler: str | None = choice(None, SAMPLERS)
    """Sampler of the class images; null: the checkpoint's own."""
    batch_size: int = bounded(8, at_least=1, most=MOST_AT_ONCE)
    """Class images sampled at once. It does not change them beyond rounding."""


@dataclass
class TrainConfig:
    """Optimisation of the adapters on the frozen base."""

    steps: int = bounded(500, at_least=1, most=MOST_STEPS)
    """Optimizer steps."""
    batch_size: int = bounded(1, at_least=1, most=MOST_AT_ONCE)
    """Pictures of the subject per forward pass (as many class images again with prior preservation)."""
    grad_accum: int = bounded(1, at_least=1, most=MOST_STEPS)
    """Forward passes whose mean gradient makes one optimizer step."""
    remainder: str = newer(choice("carry", REMAINDERS), neutral="carry")
    """With `grad_accum`: what becomes of the last passes of an epoch where they are too few for a step."""
    lr: float = bounded(1e-4, above=0, most=1e16)
    """Peak learning rate of the denoiser's adapters."""
    text_encoder_lr: float | None = bounded(None, above=0, most=1e16)
    """Peak learning rate of the text encoder's adapters; null: `lr`."""
    optimizer: str = choice("adamw", OPTIMIZERS)
    """What turns gradients into steps."""
    beta1: float = bounded(0.9, at_least=0, below=1)
    """Decay of the first moment."""
    beta2: float = bounded(0.999, at_least=0, below=1)
    """Decay of the second moment."""
    eps: float = bounded(1e-8, above=0, most=1)
    """Added to the root of the second moment."""
    weight_decay: float = bounded(1e-2, at_least=0, most=1000)
    """Decoupled weight decay."""
    max_grad_norm: float = bounded(1.0, at_least=0, most=1e9)
    """Gradients of denoiser and text encoder together are clipped to this global norm; 0: no clipping."""
    min_snr_gamma: float | None = bounded(None, above=0, most=1e6)
    """Gamma of min-SNR loss weighting (Hang et al., arXiv 2303.09556), usually 5; null: every timestep counts the same."""
    noise_offset: float = bounded(0.0, at_least=0, most=100)
    """Standard deviation of a per-channel offset added to the noise; 0: none."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: str = newer(choice("none", COMPILE), neutral="none")
    """What of the denoiser is compiled by torch before it trains; needs a C++ compiler, on a GPU triton and a C compiler. Results agree to rounding."""
    graphs: str = newer(choice("off", GRAPHS), neutral="off")
    """Whether a GPU gets a training step as one recorded piece of work (a CUDA graph): the host then no longer limits the speed of few lanes. It changes no result beyond rounding."""
    interpolation: str = choice("bilinear", INTERPOLATIONS)
    """How pictures are resized."""
    crop: str = choice("center", CROPS)
    """What becomes of the long side, after the short one is resized to the resolution."""
    crop_variants: int = bounded(16, at_least=1, most=MOST_IMAGES)
    """With random crops of a picture that is not square: how many positions are drawn and encoded once."""
    flip: bool = False
    """Mirror pictures at random."""
    sample_latents: bool = True
    """Draw from the VAE's posterior anew every step; false: its mean."""
    timesteps: str = newer(choice("checkpoint", TIMES), neutral="checkpoint")
    """How much noise training pictures get."""
    logit_mean: float = newer(bounded(0.0, most=100), neutral=0.0)
    """With logit_normal: mean before the sigmoid; above 0: more noise."""
    logit_std: float = newer(bounded(1.0, above=0, most=100), neutral=1.0)
    """With logit_normal: standard deviation before the sigmoid."""
    shift: Any = newer(None, neutral=None)
    """Of flow matching, a share of noise s becomes k s / (1 + (k - 1) s). A number: k; resolution: as the checkpoint is sampled at this resolution; null: the checkpoint's own fixed k."""
    guidance: float = newer(bounded(1.0, at_least=0, most=1000), neutral=1.0)
    """What the denoiser is told in training, where guidance is a number that it reads (FLUX.1 dev, FLUX.2 dev). Published trainings use 1."""
    checkpoint_every: int = bounded(250, at_least=0, most=MOST_STEPS)
    """Optimizer steps between checkpoints (state to resume from, and the LoRA at that step); 0: only when interrupted."""
    log_every: int = bounded(10, at_least=1, most=MOST_STEPS)
    """Optimizer steps between two readings of losses from the device."""


@dataclass
class SampleConfig:
    """Pictures drawn with the trained LoRA."""

    prompts: Any = "auto"
    """auto: the paper's live or object list by dataset.live; live; object; a text file, one prompt a line; or a list. {token} and {class} are filled in."""
    images_per_prompt: int = bounded(4, at_least=1, most=MOST_IMAGES)
    """Pictures per prompt, each with a seed of its own."""
    steps: int = bounded(50, at_least=1, most=MOST_SAMPLING_STEPS)
    """Sampling steps."""
    guidance_scale: float = bounded(7.5, at_least=0, most=1000)
    """Classifier-free guidance; 1: none."""
    sampler: str | None = choice(None, SAMPLERS)
    """How noise becomes a picture; null: the checkpoint's own."""
    negative_prompt: str | None = text(None, NEGATIVE)
    """What to steer away from; null: the empty prompt."""
    lora_scale: float = bounded(1.0, most=1000)
    """Strength of the LoRA when it is merged."""
    resolution: int = bounded(512, at_least=8, most=8192)
    """Width and height in pixels; by default the model's."""
    batch_size: int = bounded(8, at_least=1, most=MOST_AT_ONCE)
    """Pictures sampled at once. It does not change them beyond rounding."""
    lanes: str = newer(choice("auto", LANES), neutral="auto")
    """Which pictures are drawn at once. It does not change them beyond rounding."""
    compile: str = newer(choice("none", COMPILE), neutral="none")
    """What of the denoiser is compiled by torch before it draws, class images too; needs what train.compile does. It does not change pictures beyond rounding, and those that were drawn without are found."""
    class_images: int | None = bounded(None, at_least=0, most=MOST_IMAGES)
    """Pictures of 'a {class}' with the adapter on, as many with it off, for PRES; null: as samples, 25 or more; 0: none."""
    class_prompt: str = text("a {class}", PROMPT)
    """Their prompt."""
    base: bool = True
    """Also sample every prompt from the base model: its row under the table."""


@dataclass
class DinoConfig:
    """Backbone of DINO and PRES, a timm vision transformer."""

    name: str = text("vit_small_patch16_224.dino", NAME)
    """timm architecture; a tag after the dot names the hub's weights."""
    weights: str | None = text(None, PATH)
    """null: timm's hub; a path: a local state dict; random: seeded random weights."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of timm.create_model (img_size, patch_size, embed_dim, depth, num_heads)."""
    resize: int = bounded(256, at_least=1, most=8192)
    """Short side in pixels after the bicubic resize."""
    crop: int = bounded(224, at_least=1, most=8192)
    """Side of the center crop in pixels."""
    mean: list[float] = bounded(list(IMAGENET_MEAN), most=1000)
    """Per-channel mean of the normalisation."""
    std: list[float] = bounded(list(IMAGENET_STD), above=0, most=1000)
    """Per-channel standard deviation of the normalisation."""


@dataclass
class ClipConfig:
    """Backbone of CLIP-I and CLIP-T, an open_clip model."""

    name: str = text("ViT-B-32-quickgelu", PATH)
    """open_clip architecture, or local-dir:PATH."""
    weights: str | None = text("openai", PATH)
    """open_clip tag; a path: a local checkpoint; random: seeded random weights; null: those of local-dir."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Model configuration of an architecture that open_clip does not know (embed_dim, vision_cfg, text_cfg)."""
    quick_gelu: bool = True
    """The activation must be QuickGELU, as in OpenAI's weights; anything else is an error."""


@dataclass
class LpipsConfig:
    """Backbone of DIV, the lpips package (Zhang et al., arXiv 1801.03924), version 0.1."""

    net: str = choice("alex", LPIPS_NETS)
    """Trunk."""
    trunk: str | None = text(None, PATH)
    """null: torchvision's model zoo; a path: a local state dict of the trunk; random: seeded random weights."""
    heads: str | None = text(None, PATH)
    """Linear heads: null: the ones bundled with lpips; a path: a local state dict."""
    size: int = bounded(512, at_least=1, most=8192)
    """Pictures are brought to this many pixels a side, or to the sample size when that is smaller."""


@dataclass
class EvaluateConfig:
    """Metrics and their backbones."""

    label: str | None = None
    """Printed beside every number when the backbones do not allow comparison with published figures; null: nothing."""
    dino: DinoConfig = field(default_factory=DinoConfig)
    """Backbone of DINO and PRES."""
    clip: ClipConfig = field(default_factory=ClipConfig)
    """Backbone of CLIP-I and CLIP-T."""
    lpips: LpipsConfig = field(default_factory=LpipsConfig)
    """Backbone of DIV."""
    more: dict[str, Any] = newer(field(default_factory=dict), neutral={})
    """Columns of further backbones, by a name of your own: `metric` (a file of dbexp/evaluate/metrics) and its settings. Options: evaluate/more=[dinov2_s14,clip_l14]; a column is then dino@dinov2_s14."""
    batch_size: int = bounded(32, at_least=1, most=MOST_AT_ONCE)
    """Pictures embedded at once. It does not change the numbers."""
    resamples: int = bounded(1000, at_least=1, most=1_000_000)
    """Bootstrap resamples of each interval."""
    confidence: float = bounded(0.95, at_least=0, below=1)
    """Coverage of the intervals."""
    seed: int = bounded(0, at_least=0, most=MOST_SEED)
    """Seed of the bootstrap."""
    allow_partial: bool = False
    """Accept more missing samples than `max_missing`."""
    max_missing: float = bounded(0.05, at_least=0, most=1)
    """Share of missing samples above which evaluation refuses."""


@dataclass
class TrackingConfig:
    """Weights & Biases. Everything is on disk first; this is the dashboard."""

    mode: str = choice("offline", TRACKING_MODES)
    """How runs reach the dashboard."""
    project: str = text("dbexp", Text(most=128, empty=False, without="/\\#?%:"))
    """W&B project."""
    entity: str | None = text(None, Text(most=128, without="/\\#?%:"))
    """W&B user or team; null: your default."""
    group: str | None = text(None, Text(most=128))
    """Groups the runs of a sweep; null: the sweep's folder."""
    name: str | None = text(None, Text(most=128))
    """Run name; null: made from the overrides."""
    tags: list[str] = text([], Text(most=64, empty=False))
    """Tags besides experiment, dataset and model."""
    images: bool = True
    """Log the per-prompt table with its pictures, and the contact sheet."""
    artifact: bool = True
    """Log the LoRA as an artifact, and name what it was made from: photographs and class images by their hashes, the model."""
    system: bool = True
    """While a run is online: log use of processor, GPU and memory, and what machine and packages it runs with."""
    code: bool = True
    """While a run is online: log the git commit of the working directory, and what differs from it."""


@dataclass
class SeedsConfig:
    """One seed per source of randomness, so that runs can share some and differ in others."""

    init: int = bounded(42, most=MOST_SEED)
    """Initial LoRA weights."""
    data: int = bounded(42, most=MOST_SEED)
    """Order, crops and mirroring of pictures."""
    noise: int = bounded(42, most=MOST_SEED)
    """Timesteps, noise and latent draws."""
    prior: int = bounded(42, most=MOST_SEED)
    """Class images for prior preservation."""
    sample: int = bounded(42, most=MOST_SEED)
    """Samples and class images for the metrics."""


@dataclass
class Config:
    """One run: everything its result depends on, and where it goes."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The frozen base model."""
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    """The subject."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """The adapters."""
    lr_schedule: LrScheduleConfig = field(default_factory=LrScheduleConfig)
    """Learning rate over time."""
    prior: PriorConfig = field(default_factory=PriorConfig)
    """Prior preservation."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimisation."""
    sample: SampleConfig = field(default_factory=SampleConfig)
    """Pictures drawn with the trained LoRA."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """Metrics."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Weights & Biases."""
    experiment: str | None = text(None, Text(path=True))
    """Name of the preset this run came from, for tags and tables."""
    seed: int = bounded(42, at_least=0, most=MOST_SEED)
    """The seed that the five of `seeds` follow unless given."""
    seeds: SeedsConfig = field(default_factory=SeedsConfig)
    """One seed per source of randomness."""
    objective: list[str] = field(default_factory=lambda: ["recommend"])
    """What ranks runs, and what a run returns to a sweeper. recommend: subject, prompt and class weighed on their ways between base model and real images; a column of the metric table; a trade-off such as '0.5*dino+0.5*clip_t'; several for a Pareto front, or a search with as many objectives: dino+clip_t or [dino,clip_t]."""
    store: str | None = text(None, Text(most=PATH.most, path=True))
    """Folder of the content-addressed cache; null: dbexp in the user's cache directory."""
