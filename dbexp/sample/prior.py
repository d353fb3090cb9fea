"""The prior stage: class images for prior preservation (DreamBooth, arXiv 2208.12242, section 3.2).

The base model draws them from a seed stream of their own and touches no global random state, so a run trains the same
whether they were drawn now or found in the store.
"""

from __future__ import annotations

from pathlib import Path

from dbexp.config.check import fill
from dbexp.config.schema import Config, PriorConfig
from dbexp.core.errors import ConfigError, count
from dbexp.core.images import image_files
from dbexp.core.inspection import image_problems, image_warnings, unread_warnings
from dbexp.core.store import Store
from dbexp.models import Model
from dbexp.sample.sets import draw_set, find_set
from dbexp.sample.shots import Sampling


def class_images(cfg: Config, model: Model, store: Store) -> tuple[Path, ...]:
    """The files of the class images, in a fixed order; none when `prior.weight` is 0.

    Args:
        cfg: a checked config.
        model: the base model that draws them; not used when `prior.path` names a folder.
        store: shares them between all runs whose model, prompt, count, seed and sampling agree.

    Raises:
        ConfigError: the folder `prior.path` holds no picture, or memory does not suffice for `prior.batch_size`.
    """
    prior = cfg.prior
    if prior.weight == 0:
        return ()
    if prior.path is not None:
        return _files(prior)
    return draw_set("prior", _sampling(cfg), model, store, batch_size=prior.batch_size, description="prior")


def find_class_images(cfg: Config, model: Model, store: Store) -> tuple[Path, ...] | None:
    """What `class_images` would return without drawing anything; None if it would draw.

    Raises:
        ConfigError: the folder `prior.path` holds no picture.
    """
    if cfg.prior.weight == 0 or cfg.prior.path is not None:
        return class_images(cfg, model, store)
    return find_set("prior", _sampling(cfg), model, store)


def _sampling(cfg: Config) -> Sampling:
    prior = cfg.prior
    return Sampling(
        stream="prior",
        seed=cfg.seeds.prior,
        prompts=(fill(prior.prompt, cfg.dataset),),
        images_per_prompt=prior.count,
        steps=prior.steps,
        guidance_scale=prior.guidance_scale,
        sampler=prior.sampler,
        resolution=cfg.model.resolution,
    )


def problems(cfg: Config) -> list[str]:
    """What keeps class images of the user's from being used, one message each; every one of them is read for it."""
    if cfg.prior.weight == 0 or cfg.prior.path is None:
        return []
    try:
        return image_problems(_files(cfg.prior), f"prior.path={cfg.prior.path}")
    except ConfigError as error:
        return list(error.problems)


def warnings(cfg: Config) -> list[str]:
    """What a person would want to know of class images of their own, one sentence each."""
    if cfg.prior.weight == 0 or cfg.prior.path is None:
        return []
    files = _files(cfg.prior)
    sentences = image_warnings(files, cfg.model.resolution) + unread_warnings(files[0].parent, files, "prior.prompt")
    if len(files) < cfg.prior.count and not cfg.prior.use_all:
        few = f"holds {count(len(files), 'picture')}, fewer than prior.count={cfg.prior.count}: all of them are used"
        return [f"prior.path={cfg.prior.path} {few}", *(f"class images: {sentence}" for sentence in sentences)]
    return [f"class images: {sentence}" for sentence in sentences]


def _files(prior: PriorConfig) -> tuple[Path, ...]:
    """Class images of the user's: the first `count` of the folder by file name, or all."""
    files = tuple(image_files(Path(prior.path or "").expanduser()))
    if not files:
        raise ConfigError(f"prior.path={prior.path}: the folder holds no picture; put some there, or prior.path=null")
    return files if prior.use_all else files[: prior.count]
