"""The prior stage: images of the class for prior preservation (DreamBooth, arXiv 2208.12242, section 3.2).

The base model draws them from a seed stream of their own and touches no global random state, so a run trains the same
whether they were drawn now or found in the store.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dbexp.core.errors import ConfigError, count
from dbexp.core.images import image_files
from dbexp.core.inspection import image_problems, image_warnings, unread_warnings
from dbexp.core.store import Store
from dbexp.models import Model
from dbexp.sample.sets import draw_set, find_set
from dbexp.sample.shots import Sampling


@dataclass(frozen=True)
class PriorRequest:
    """The prior images of a run."""

    sampling: Sampling
    """How the base model draws them."""
    batch_size: int
    """Images drawn at once."""
    path: str | None = None
    """Folder of the user's images, in place of drawn ones."""
    use_all: bool = False
    """All images of `path`; false: the first `sampling.images_per_prompt` by file name."""
    grows: bool = False
    """See `Drawing`."""
    compile: str = "none"
    """Likewise."""


def prior_images(request: PriorRequest | None, model: Model, store: Store) -> tuple[Path, ...]:
    """The files of the prior images, in a fixed order.

    Args:
        request: None: the run trains without prior preservation and gets none.
        model: the base model that draws them; not used when `path` names a folder.
        store: shares them between all runs whose model and sampling agree.

    Raises:
        ConfigError: the folder holds no image, or memory does not suffice for `prior.batch_size`.
    """
    if request is None:
        return ()
    if request.path is not None:
        return _files(request, request.path)
    return draw_set(
        "prior",
        request.sampling,
        model,
        store,
        batch_size=request.batch_size,
        grows=request.grows,
        compile=request.compile,
        description="prior",
    )


def find_prior_images(request: PriorRequest | None, model: Model, store: Store) -> tuple[Path, ...] | None:
    """What `prior_images` would return without drawing anything; None if it would draw.

    Raises:
        ConfigError: the folder holds no image.
    """
    if request is None or request.path is not None:
        return prior_images(request, model, store)
    return find_set("prior", request.sampling, model, store)


def problems(request: PriorRequest | None) -> list[str]:
    """What keeps prior images of the user's from being used, one message each; every one of them is read for it."""
    if request is None or request.path is None:
        return []
    try:
        return image_problems(_files(request, request.path), f"prior.path={request.path}")
    except ConfigError as error:
        return list(error.problems)


def warnings(request: PriorRequest | None) -> list[str]:
    """What a person would want to know of prior images of their own, one sentence each."""
    if request is None or request.path is None:
        return []
    files, most = _files(request, request.path), request.sampling.images_per_prompt
    sentences = image_warnings(files, request.sampling.resolution)
    sentences += unread_warnings(files[0].parent, files, "prior.prompt")
    sentences = [f"prior images: {sentence}" for sentence in sentences]
    if len(files) < most and not request.use_all:
        few = f"holds {count(len(files), 'picture')}, fewer than prior.count={most}: all of them are used"
        return [f"prior.path={request.path} {few}", *sentences]
    return sentences


def _files(request: PriorRequest, path: str) -> tuple[Path, ...]:
    """The user's images."""
    files = tuple(image_files(Path(path).expanduser()))
    if not files:
        raise ConfigError(f"prior.path={path}: the folder holds no picture; put some there, or prior.path=null")
    return files if request.use_all else files[: request.sampling.images_per_prompt]
