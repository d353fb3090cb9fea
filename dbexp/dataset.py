"""The subject: a handful of photographs from a folder, the DreamBooth dataset or the storybook.

Every fault that can be known before weights are loaded is found here and told at once: `problems` for what makes a run
impossible, `warnings` for what makes its result worse than it need be.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dbexp.config.schema import DatasetConfig
from dbexp.config.template import fill
from dbexp.core.environment import hub_switched_off
from dbexp.core.errors import ConfigError, count, did_you_mean, first_line, listed
from dbexp.core.hashing import file_hash
from dbexp.core.images import image_files
from dbexp.core.inspection import MANY, has_images, image_problems, image_warnings, unread_warnings
from dbexp.core.store import Store

UNNAMED = "folder"
"""The `name` of `dataset=folder`: stands for the base name of the folder."""

FEW = 3
"""Fewer pictures than this earn a warning; the paper's subjects have 4 to 6."""

_MOST = 12
"""Names of other folders in a message."""


@dataclass(frozen=True)
class Subject:
    """What every later stage knows of the subject."""

    name: str
    """In tables, run names and tags."""
    token: str
    """The rare word that comes to mean the subject."""
    class_noun: str
    """What the subject is an instance of."""
    live: bool
    """Whether the paper's live prompts apply, not its object prompts."""
    prompt: str
    """Caption of every training picture, filled in."""
    paths: tuple[Path, ...]
    """The pictures, absolute, sorted by file name."""
    hashes: tuple[str, ...]
    """sha256 of each file's bytes, hexadecimal, in the same order."""
    folder: Path | None = None
    """The user's folder that they lie in; None: they were drawn."""


def problems(cfg: DatasetConfig) -> list[str]:
    """Everything that keeps this dataset from loading, each as one message; empty when it will load.

    Reads every picture. A subject on the hub is downloaded for it, once and for all.
    """
    try:
        if cfg.source == "storybook":
            _storybook_key(cfg)
            return []
        return image_problems(image_files(_folder(cfg)))
    except ConfigError as error:
        return list(error.problems)


def subject_name(cfg: DatasetConfig) -> str:
    """The subject's name: the configured one, or for `dataset=folder` the base name of the folder."""
    return _absolute(cfg.path).name if cfg.name == UNNAMED and cfg.path else cfg.name


def load(cfg: DatasetConfig, store: Store) -> Subject:
    """Find the subject's pictures, or draw them.

    Args:
        cfg: a checked group of the configuration.
        store: where drawn pictures are kept.

    Raises:
        ConfigError: with everything that `problems` finds.
    """
    if faults := problems(cfg):
        raise ConfigError(faults)
    folder = _drawn(cfg, store) if cfg.source == "storybook" else _folder(cfg)
    paths = tuple(image_files(folder))
    return Subject(
        name=subject_name(cfg),
        token=cfg.token,
        class_noun=cfg.class_noun,
        live=cfg.live,
        prompt=fill(cfg.prompt, cfg),
        paths=paths,
        hashes=tuple(file_hash(path) for path in paths),
        folder=None if cfg.source == "storybook" else folder,
    )


def warnings(subject: Subject, resolution: int) -> list[str]:
    """What a person would want to know about these pictures before spending hours on them.

    Args:
        subject: a loaded subject.
        resolution: side of a training image in pixels.

    Returns:
        One sentence for each kind of fault: too few, too many, those of the pictures, and what lies beside them and is
        not read.
    """
    number, sentences = len(subject.paths), []
    if number < FEW:
        sentences.append(f"subject {subject.name} has only {count(number, 'picture')}: 4 to 6 are usual")
    if number > MANY:
        sentences.append(
            f"subject {subject.name} has {count(number, 'picture')}, and all of them are encoded and trained on: "
            "4 to 6 are usual"
        )
    beside = [] if subject.folder is None else unread_warnings(subject.folder, subject.paths, "dataset.prompt")
    return sentences + image_warnings(subject.paths, resolution) + beside


def _folder(cfg: DatasetConfig) -> Path:
    """The folder of the subject's pictures as an absolute path; it exists and holds at least one.

    Raises:
        ConfigError: there is none, telling what is there.
    """
    if cfg.path is not None:
        setting = f"dataset.path={cfg.path}"
    elif cfg.source == "folder":
        raise ConfigError("dataset.path=null: say which folder holds the subject's pictures, dataset.path=FOLDER")
    elif cfg.root is not None:
        setting = f"dataset.root={cfg.root}, dataset.name={cfg.name}"
    else:
        setting = f"dataset.hub={cfg.hub}, dataset.name={cfg.name}"
    try:
        return _with_pictures(_existing(_location(cfg), setting), setting)
    except OSError as error:  # no right to look there, say, or a name too long for the disk
        raise ConfigError(f"{setting}: cannot be reached ({error})") from error


def _location(cfg: DatasetConfig) -> Path:
    """Where the folder should be: the path itself, or below a copy of the DreamBooth dataset."""
    if cfg.path is not None:
        return _absolute(cfg.path)
    root = _download(cfg.hub, cfg.name) if cfg.root is None else _absolute(cfg.root)
    nested = root / "dataset"  # where the hub and GitHub have the subjects
    return (nested if nested.is_dir() else root) / cfg.name


def _absolute(path: str) -> Path:
    """A path of the configuration without `~`, `.` and `..`."""
    # pathlib would follow links, so that a linked folder lost the name it was given, and would raise on ~nobody.
    return Path(os.path.abspath(os.path.expanduser(path)))  # noqa: PTH100, PTH111


def _download(hub: str, name: str) -> Path:
    """Fetch one subject's folder of a public hub dataset, or find it where an earlier run put it.

    Raises:
        ConfigError: neither worked, saying what to pass instead.
    """
    from huggingface_hub import snapshot_download

    # Exception, because the HTTP library whose errors come through differs between versions of the hub's client.
    try:
        return Path(
            snapshot_download(hub, repo_type="dataset", allow_patterns=[f"{name}/*", f"dataset/{name}/*"], token=False)
        )
    except Exception as error:
        reason = hub_switched_off() or first_line(error, typed=True)
        raise ConfigError(
            f"dataset.hub={hub}: subject {name} could not be downloaded ({reason}); "
            "pass dataset.path=FOLDER for a folder of its pictures, "
            "or dataset.root=FOLDER for a copy of the whole dataset"
        ) from error


def _storybook_key(cfg: DatasetConfig) -> str:
    """The storybook's own name of a subject: what follows the slash of `storybook/dog`.

    Raises:
        ConfigError: the storybook has no such subject, or the config also names a folder.
    """
    from dbexp.storybook.world.subjects import SUBJECTS

    if cfg.path is not None or cfg.root is not None:
        field = "path" if cfg.path is not None else "root"
        raise ConfigError(
            f"dataset.{field}={getattr(cfg, field)}: has no effect on a drawn subject; "
            "for pictures of your own choose dataset=folder, or drop it"
        )
    prefix, _, key = cfg.name.rpartition("/")
    if prefix != "storybook" or key not in SUBJECTS:
        known = [f"storybook/{name}" for name in SUBJECTS]
        raise ConfigError(f"dataset.name={cfg.name}: choose one of {', '.join(known)}{did_you_mean(cfg.name, known)}")
    return key


def _drawn(cfg: DatasetConfig, store: Store) -> Path:
    """The store entry with a storybook subject's pictures, drawn the first time."""
    from dbexp.storybook.world.subjects import draw_subject
    from dbexp.storybook.world.world import VERSION

    key = _storybook_key(cfg)

    def make(folder: Path) -> None:
        draw_subject(key, folder)

    return store.get("dataset", {"version": 1, "storybook": VERSION, "subject": key}, make)


def _existing(folder: Path, setting: str) -> Path:
    """The folder itself, once it is known to be one.

    Args:
        folder: absolute.
        setting: how the config names it; the start of a message.

    Raises:
        ConfigError: it is a file, or missing; then with what lies where it should be.
    """
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ConfigError(f"{setting}: is a file; give the folder that holds it, {folder.parent}")
    if not folder.parent.is_dir():
        raise ConfigError(f"{setting}: there is no folder {folder}, nor the one above it")
    siblings = _names(folder.parent, Path.is_dir)
    holds = f"; {folder.parent} holds {listed(siblings, _MOST)}" if siblings else ", nor any other beside it"
    raise ConfigError(f"{setting}: there is no folder {folder}{holds}{did_you_mean(folder.name, siblings)}")


def _with_pictures(folder: Path, setting: str) -> Path:
    """The same for an existing folder that must hold pictures; if it has none, the message says what it has."""
    if image_files(folder):
        return folder
    below = _names(folder, lambda path: path.is_dir() and has_images(path))
    hint = f"; there are pictures one level down, in {listed(below, _MOST)}" if below else ""
    raise ConfigError(f"{setting}: no picture in {folder}, {_contents(folder)}{hint}")


def _contents(folder: Path) -> str:
    """What a folder without pictures holds: "only 2 .txt files and 1 folder"."""
    kinds = Counter("folder" if path.is_dir() else f"{path.suffix or path.name} file" for path in folder.iterdir())
    if not kinds:
        return "it is empty"
    return "only " + listed([count(number, kind) for kind, number in sorted(kinds.items())])


def _names(folder: Path, condition: Callable[[Path], bool]) -> list[str]:
    """Sorted names in a folder, hidden ones left out."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".") and condition(path))
