"""Every parameter of an experiment: its type, default, unit and meaning, and the rules that span several of them.

One dataclass per config group. The string under a field is its documentation; `dbexp --help` prints it. YAML files in
`conf/` hold the options of each group and are checked against these classes by Hydra; `check` then applies the rules
that no type can express and reports every broken one at once.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dbexp.errors import ConfigError, Problems

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass
class ModelConfig:
    """The frozen base model, a checkpoint of one family."""

    name: str = MISSING
    """Short name in tables, run names and tags."""
    family: str = "sd"
    """Which module of dbexp/models understands the checkpoint. sd: Stable Diffusion 1.x and 2.x."""
    path: str = MISSING
    """Hub id, local pipeline folder, single .safetensors/.ckpt file, or 'random' for small random weights made on the spot."""
    revision: str | None = None
    """Branch, tag or commit on the hub; null: the default branch."""
    variant: str | None = None
    """Weight file variant such as fp16; null: the plain files."""
    vae: str | None = None
    """Hub id or folder of another VAE; null: the checkpoint's own."""
    single_file_config: str | None = None
    """For a single file: hub id or local folder of the pipeline whose configuration it has; null: diffusers finds out."""
    resolution: int = 512
    """Width and height in pixels of training images and samples."""
    precision: str = "auto"
    """Of the frozen weights and of autocast: fp32, bf16, fp16; auto: bf16 or fp16 on a GPU that has it, else fp32. LoRA weights are always fp32."""
    device: str = "auto"
    """cpu, cuda, mps or cuda:1; auto: what accelerate finds."""
    label: str | None = None
    """Printed beside every number when the weights do not allow comparison with published figures; null: nothing."""


@dataclass
class DatasetConfig:
    """The subject: a handful of photographs, its token and its class."""

    name: str = MISSING
    """Short name in tables, run names and tags."""
    source: str = "folder"
    """folder: the files in `path`; dreambooth: subject `name` of the DreamBooth dataset; storybook: a drawn subject."""
    path: str | None = None
    """Folder of the subject's pictures; null: found through `root` or `hub`."""
    root: str | None = None
    """Local copy of the DreamBooth dataset, one folder per subject; null: the hub."""
    hub: str = "google/dreambooth"
    """Hub dataset that holds the subject's folder when neither `path` nor `root` is given."""
    token: str = "sks"
    """The rare word that comes to mean the subject; best if it is one token of the text encoder."""
    class_noun: str = MISSING
    """What the subject is an instance of, as a prompt says it: dog, backpack, stuffed animal."""
    live: bool = MISSING
    """true: sample the paper's live prompts (outfits, accessories); false: its object prompts."""
    prompt: str = "a photo of {token} {class}"
    """Caption of every training picture of the subject."""


@dataclass
class LoraConfig:
    """Low-rank adapters (Hu et al., arXiv 2106.09685): which layers get one, and how large."""

    rank: int = 16
    """Rank r of every adapter."""
    alpha: float | None = None
    """The update is scaled by alpha / rank; null: alpha = rank, so scale 1."""
    sites: str = "attention"
    """UNet layers that are adapted. attention: q, k, v, out; attention+geglu: these and the gated feed-forward projections; linear: every linear layer of the transformer blocks."""
    text_encoder: bool = False
    """Also adapt q, k, v, out of the text encoder."""
    text_encoder_rank: int | None = None
    """Rank in the text encoder; null: `rank`."""


@dataclass
class LrScheduleConfig:
    """Learning rate over time, as a factor of train.lr (and of train.text_encoder_lr alike)."""

    name: str = "constant"
    """constant, constant_with_warmup, linear, cosine or polynomial."""
    warmup_steps: int = 0
    """Optimizer steps of linear warm-up from 0; `constant` ignores it."""
    horizon: int | None = None
    """Optimizer steps after which the decay is complete; null: train.steps."""
    power: float = 1.0
    """Exponent of polynomial decay."""
    lr_end: float = 1e-7
    """Final learning rate of polynomial decay."""


@dataclass
class PriorConfig:
    """Prior preservation (DreamBooth, section 3.2): pictures of the class, made by the base model, trained alongside."""

    weight: float = 1.0
    """Weight lambda of the class loss; 0: no prior preservation and no class images."""
    count: int = 200
    """Number of class images."""
    prompt: str = "a photo of {class}"
    """Prompt of the class images, and their caption in training."""
    path: str | None = None
    """Folder of your own class images; null: the base model makes them."""
    use_all: bool = False
    """With `path`: true takes every picture of the folder, false the first `count`."""
    steps: int = 50
    """Sampling steps per class image."""
    guidance_scale: float = 7.5
    """Classifier-free guidance of the class images."""
    sampler: str | None = None
    """Sampler of the class images (see sample.sampler); null: the checkpoint's own."""
    batch_size: int = 8
    """Class images sampled at once. It does not change them beyond rounding."""


@dataclass
class TrainConfig:
    """Optimisation of the adapters on the frozen base."""

    steps: int = 500
    """Optimizer steps."""
    batch_size: int = 1
    """Pictures of the subject per forward pass (as many class images again with prior preservation)."""
    grad_accum: int = 1
    """Forward passes whose mean gradient makes one optimizer step."""
    lr: float = 1e-4
    """Peak learning rate of the UNet's adapters."""
    text_encoder_lr: float | None = None
    """Peak learning rate of the text encoder's adapters; null: `lr`."""
    optimizer: str = "adamw"
    """adamw, adamw8bit (needs bitsandbytes and a GPU) or prodigy (needs prodigyopt; its usual lr is 1)."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 1e-2
    """Decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradients of UNet and text encoder together are clipped to this global norm; 0: no clipping."""
    min_snr_gamma: float | None = None
    """Gamma of min-SNR loss weighting (Hang et al., arXiv 2303.09556), usually 5; null: every timestep counts the same."""
    noise_offset: float = 0.0
    """Standard deviation of a per-channel offset added to the noise; 0: none."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    interpolation: str = "bilinear"
    """How pictures are resized: bilinear, bicubic or lanczos."""
    crop: str = "center"
    """After the short side is resized to the resolution: center, random, or none (pictures must then be square)."""
    crop_variants: int = 16
    """With random crops of a picture that is not square: how many positions are drawn and encoded once."""
    flip: bool = False
    """Mirror pictures at random."""
    sample_latents: bool = True
    """Draw from the VAE's posterior anew every step; false: its mean."""
    checkpoint_every: int = 250
    """Optimizer steps between checkpoints (state to resume from, and the LoRA at that step); 0: only when interrupted."""
    log_every: int = 10
    """Optimizer steps between two readings of losses from the device."""


@dataclass
class SampleConfig:
    """Pictures drawn with the trained LoRA."""

    prompts: Any = "auto"
    """auto: the paper's live or object list by dataset.live; live; object; a text file, one prompt a line; or a list. {token} and {class} are filled in."""
    images_per_prompt: int = 4
    """Pictures per prompt, each with a seed of its own."""
    steps: int = 50
    """Sampling steps."""
    guidance_scale: float = 7.5
    """Classifier-free guidance; 1: none."""
    sampler: str | None = None
    """ddim, ddpm, dpm++, dpm++sde, euler, euler_a, heun, lms, pndm, unipc; null: the checkpoint's own."""
    negative_prompt: str | None = None
    """What to steer away from; null: the empty prompt."""
    lora_scale: float = 1.0
    """Strength of the LoRA when it is merged."""
    resolution: int = 512
    """Width and height in pixels; by default the model's."""
    batch_size: int = 8
    """Pictures sampled at once. It does not change them beyond rounding."""
    class_images: int = 100
    """Pictures of 'a {class}' with the adapter on, and as many with it off, for PRES; 0: no PRES."""
    class_prompt: str = "a {class}"
    """Their prompt."""
    base: bool = True
    """Also sample every prompt from the base model: its row under the table."""


@dataclass
class DinoConfig:
    """Backbone of DINO and PRES, a timm vision transformer."""

    name: str = "vit_small_patch16_224.dino"
    """timm architecture; a tag after the dot names the hub's weights."""
    weights: str | None = None
    """null: timm's hub; a path: a local state dict; random: seeded random weights."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of timm.create_model (img_size, patch_size, embed_dim, depth, num_heads)."""
    resize: int = 256
    """Short side in pixels after the bicubic resize."""
    crop: int = 224
    """Side of the center crop in pixels."""
    mean: list[float] = field(default_factory=lambda: list(IMAGENET_MEAN))
    """Per-channel mean of the normalisation."""
    std: list[float] = field(default_factory=lambda: list(IMAGENET_STD))
    """Per-channel standard deviation of the normalisation."""


@dataclass
class ClipConfig:
    """Backbone of CLIP-I and CLIP-T, an open_clip model."""

    name: str = "ViT-B-32-quickgelu"
    """open_clip architecture, or local-dir:PATH."""
    weights: str | None = "openai"
    """open_clip tag; a path: a local checkpoint; random: seeded random weights; null: those of local-dir."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Model configuration of an architecture that open_clip does not know (embed_dim, vision_cfg, text_cfg)."""
    quick_gelu: bool = True
    """The activation must be QuickGELU, as in OpenAI's weights; anything else is an error."""


@dataclass
class LpipsConfig:
    """Backbone of DIV, the lpips package (Zhang et al., arXiv 1801.03924), version 0.1."""

    net: str = "alex"
    """Trunk: alex, vgg or squeeze."""
    trunk: str | None = None
    """null: torchvision's model zoo; a path: a local state dict of the trunk; random: seeded random weights."""
    heads: str | None = None
    """Linear heads: null: the ones bundled with lpips; a path: a local state dict."""
    size: int = 512
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
    batch_size: int = 32
    """Pictures embedded at once. It does not change the numbers."""
    resamples: int = 1000
    """Bootstrap resamples of each interval."""
    confidence: float = 0.95
    """Coverage of the intervals."""
    seed: int = 0
    """Seed of the bootstrap."""
    allow_partial: bool = False
    """Accept more missing samples than `max_missing`."""
    max_missing: float = 0.05
    """Share of missing samples above which evaluation refuses."""


@dataclass
class TrackingConfig:
    """Weights & Biases. Everything is on disk first; this is the dashboard."""

    mode: str = "offline"
    """offline: a run folder to upload later; online: live; disabled: none."""
    project: str = "dbexp"
    """W&B project."""
    entity: str | None = None
    """W&B user or team; null: your default."""
    group: str | None = None
    """Groups the runs of a sweep; null: the sweep's folder."""
    name: str | None = None
    """Run name; null: made from the overrides."""
    tags: list[str] = field(default_factory=list)
    """Tags besides experiment, dataset and model."""
    images: bool = True
    """Log the per-prompt table with its pictures, and the contact sheet."""
    artifact: bool = True
    """Log the LoRA as an artifact."""


@dataclass
class SeedsConfig:
    """One seed per source of randomness, so that runs can share some and differ in others."""

    init: int = 42
    """Initial LoRA weights."""
    data: int = 42
    """Order, crops and mirroring of pictures."""
    noise: int = 42
    """Timesteps, noise and latent draws."""
    prior: int = 42
    """Class images for prior preservation."""
    sample: int = 42
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
    experiment: str | None = None
    """Name of the preset this run came from, for tags and tables."""
    seed: int = 42
    """The seed that the five of `seeds` follow unless given."""
    seeds: SeedsConfig = field(default_factory=SeedsConfig)
    """One seed per source of randomness."""
    objective: str = "dino"
    """Column of the metric table that the run returns to a sweeper; several, comma separated, for multi-objective search."""
    store: str | None = None
    """Folder of the content-addressed cache; null: dbexp in the user's cache directory."""


CHOICES: dict[str, tuple[str, ...]] = {
    "model.family": ("sd",),
    "model.precision": ("auto", "fp32", "bf16", "fp16"),
    "dataset.source": ("folder", "dreambooth", "storybook"),
    "lora.sites": ("attention", "attention+geglu", "linear"),
    "lr_schedule.name": ("constant", "constant_with_warmup", "linear", "cosine", "polynomial"),
    "train.optimizer": ("adamw", "adamw8bit", "prodigy"),
    "train.interpolation": ("bilinear", "bicubic", "lanczos"),
    "train.crop": ("center", "random", "none"),
    "evaluate.lpips.net": ("alex", "vgg", "squeeze"),
    "tracking.mode": ("offline", "online", "disabled"),
}
SAMPLERS = ("ddim", "ddpm", "dpm++", "dpm++sde", "euler", "euler_a", "heun", "lms", "pndm", "unipc")

# field -> smallest allowed value; None after it: larger is fine. Open bounds are written as the next thing up.
AT_LEAST: dict[str, float] = {
    "model.resolution": 8,
    "lora.rank": 1,
    "lora.text_encoder_rank": 1,
    "lr_schedule.warmup_steps": 0,
    "lr_schedule.horizon": 1,
    "lr_schedule.lr_end": 0,
    "lr_schedule.power": 0,
    "prior.weight": 0,
    "prior.count": 1,
    "prior.steps": 1,
    "prior.guidance_scale": 0,
    "prior.batch_size": 1,
    "train.steps": 1,
    "train.batch_size": 1,
    "train.grad_accum": 1,
    "train.weight_decay": 0,
    "train.max_grad_norm": 0,
    "train.noise_offset": 0,
    "train.crop_variants": 1,
    "train.checkpoint_every": 0,
    "train.log_every": 1,
    "sample.images_per_prompt": 1,
    "sample.steps": 1,
    "sample.guidance_scale": 0,
    "sample.resolution": 8,
    "sample.batch_size": 1,
    "sample.class_images": 0,
    "evaluate.batch_size": 1,
    "evaluate.resamples": 1,
    "evaluate.max_missing": 0,
    "seed": 0,
}
ABOVE_ZERO = ("train.lr", "train.text_encoder_lr", "train.eps", "train.min_snr_gamma", "lora.alpha")
BELOW_ONE = ("train.beta1", "train.beta2", "evaluate.confidence")

# optional optimisers: the library each needs, and the extra of this package that installs it
OPTIMIZER_LIBRARIES = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}


def register() -> None:
    """Tell Hydra about the schema; `conf/config.yaml` builds on it by the name `schema`."""
    ConfigStore.instance().store(name="schema", node=Config)


def conf_dir() -> Path:
    """The folder of YAML files: inside the installed package, or beside it in a checkout.

    Raises:
        ConfigError: neither exists, so the installation is damaged.
    """
    package = Path(__file__).resolve().parent
    for candidate in (package / "conf", package.parent / "conf"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise ConfigError(f"no conf/config.yaml beside or inside {package}: reinstall dbexp")


def _check_bounds(config: Config, problems: Problems) -> None:
    """The rules that concern one field alone."""

    def value(path: str) -> Any:
        node: Any = config
        for part in path.split("."):
            node = getattr(node, part)
        return node

    for path, choices in CHOICES.items():
        problems.require(value(path) in choices, f"{path}={value(path)}: choose one of {', '.join(choices)}")
    for path in ("prior.sampler", "sample.sampler"):
        chosen = value(path)
        problems.require(
            chosen is None or chosen in SAMPLERS, f"{path}={chosen}: choose one of {', '.join(SAMPLERS)}, or null"
        )
    for path, low in AT_LEAST.items():
        number = value(path)
        finite = number is None or math.isfinite(number)
        problems.require(number is None or (finite and number >= low), f"{path}={number}: must be at least {low:g}")
    for path in ABOVE_ZERO:
        number = value(path)
        problems.require(
            number is None or (math.isfinite(number) and number > 0), f"{path}={number}: must be greater than 0"
        )
    for path in BELOW_ONE:
        number = value(path)
        problems.require(0 <= number < 1, f"{path}={number}: must lie in [0, 1)")


def _check_together(config: Config, problems: Problems) -> None:
    """The rules that span several fields."""
    for path, size in (("model.resolution", config.model.resolution), ("sample.resolution", config.sample.resolution)):
        problems.require(size % 8 == 0, f"{path}={size}: must be a multiple of 8")
    schedule, train, dataset = config.lr_schedule, config.train, config.dataset
    horizon = schedule.horizon or train.steps
    decays = schedule.name in ("linear", "cosine", "polynomial")
    problems.require(
        not decays or schedule.warmup_steps < horizon,
        f"lr_schedule.warmup_steps={schedule.warmup_steps}: must be smaller than the horizon of {horizon} steps",
    )
    problems.require(
        schedule.name != "polynomial" or schedule.lr_end < train.lr,
        f"lr_schedule.lr_end={schedule.lr_end:g}: must be smaller than train.lr={train.lr:g}",
    )
    library = OPTIMIZER_LIBRARIES.get(train.optimizer)
    problems.require(
        library is None or importlib.util.find_spec(library) is not None,
        f"train.optimizer={train.optimizer}: needs the package {library}, which is not installed (pip install {library})",
    )
    problems.require(
        train.text_encoder_lr is None or config.lora.text_encoder,
        f"train.text_encoder_lr={train.text_encoder_lr}: has no effect without lora.text_encoder=true; set that, or null",
    )
    problems.require(
        config.lora.text_encoder_rank is None or config.lora.text_encoder,
        f"lora.text_encoder_rank={config.lora.text_encoder_rank}: has no effect without lora.text_encoder=true; set that, or null",
    )
    problems.require(
        dataset.source != "folder" or dataset.path is not None,
        "dataset.path=null: say which folder holds the subject's pictures, dataset.path=FOLDER",
    )
    problems.require(
        dataset.token.strip() != "" and len(dataset.token.split()) == 1,
        f"dataset.token={dataset.token!r}: must be one word",
    )
    problems.require(dataset.class_noun.strip() != "", "dataset.class_noun='': say what the subject is, such as dog")
    problems.require(
        "{token}" in dataset.prompt,
        f"dataset.prompt={dataset.prompt!r}: must contain {{token}}, or nothing would name the subject",
    )
    for path, template in (
        ("dataset.prompt", dataset.prompt),
        ("prior.prompt", config.prior.prompt),
        ("sample.class_prompt", config.sample.class_prompt),
    ):
        try:
            fill(template, dataset)
        except (KeyError, IndexError, ValueError):
            problems.require(False, f"{path}={template!r}: only {{token}} and {{class}} may stand in braces")
    if config.prior.path is not None and config.prior.weight > 0:
        problems.require(
            Path(config.prior.path).expanduser().is_dir(), f"prior.path={config.prior.path}: there is no such folder"
        )


def fill(template: str, dataset: DatasetConfig) -> str:
    """Fill {token} and {class} of a prompt.

    Raises:
        KeyError, IndexError, ValueError: another name, or an unmatched brace, stands in the template.
    """
    return template.format(**{"token": dataset.token, "class": dataset.class_noun})


def check(cfg: DictConfig | Config) -> Config:
    """Turn a composed config into plain dataclasses, having applied every rule.

    Args:
        cfg: what Hydra composed, without its `hydra` node, or a `Config`.

    Returns:
        A new `Config`, free of interpolations.

    Raises:
        ConfigError: with one line per problem, each naming the field, its value and what would be right.
    """
    try:
        plain = OmegaConf.to_container(OmegaConf.structured(cfg) if isinstance(cfg, Config) else cfg, resolve=True)
        merged = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(plain))
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from None
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise ConfigError([f"{path}: has no value; give one, {path}=..." for path in missing])
    config = OmegaConf.to_object(merged)
    assert isinstance(config, Config)
    problems = Problems()
    _check_bounds(config, problems)
    _check_together(config, problems)
    problems.raise_if_any()
    return config


def advice(config: Config, real_images: int) -> list[str]:
    """Settings that are allowed but rarely meant, as sentences for the log.

    Args:
        config: a checked config.
        real_images: number of the subject's pictures.
    """
    said = []
    train = config.train
    if train.optimizer != "prodigy":
        for name, lr in (("train.lr", train.lr), ("train.text_encoder_lr", train.text_encoder_lr)):
            if lr is not None and lr > 1e-3:
                said.append(f"{name}={lr:g} is high for LoRA: above 1e-3 pictures tend to break")
            if lr is not None and lr < 1e-6:
                said.append(f"{name}={lr:g} is low for LoRA: below 1e-6 little is learnt")
    per_image = train.steps / max(real_images, 1)
    if not 50 <= per_image <= 400:
        said.append(
            f"train.steps={train.steps} is {per_image:.0f} steps for each of {real_images} pictures: "
            "50 to 400 is usual (fewer underfits, more memorises)"
        )
    if config.lora.rank > 128:
        said.append(f"lora.rank={config.lora.rank}: above 128 costs memory and seldom gains anything")
    return said


def plain(value: Any) -> Any:
    """A dataclass or OmegaConf node as dicts, lists and scalars, ready for JSON."""
    if isinstance(value, (DictConfig, ListConfig)):
        return OmegaConf.to_container(value, resolve=True, enum_to_str=True)
    return OmegaConf.to_container(OmegaConf.structured(value), resolve=True, enum_to_str=True)
