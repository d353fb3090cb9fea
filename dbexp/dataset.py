"""The subject: a handful of photographs from a folder, the DreamBooth dataset or the storybook.

Every fault that can be known before weights are loaded is found here and told at once: `problems` for what makes a run
impossible, `warnings` for what makes its result worse than it need be.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from dbexp.config.check import fill
from dbexp.config.schema import DatasetConfig
from dbexp.core.errors import ConfigError, count, did_you_mean, first_line, listed
from dbexp.core.hashing import file_hash
from dbexp.core.images import image_files, is_image, read_rgb
from dbexp.core.store import Store

UNNAMED = "folder"
"""The `name` of `dataset=folder`: stands for the base name of the folder."""

FEW = 3
"""Fewer pictures than this earn a warning; the paper's subjects have 4 to 6."""

OBLONG = 1.5
"""Longer sides than this many short sides earn a warning: a center crop then loses more than a third."""

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


def problems(cfg: DatasetConfig) -> list[str]:
    """Everything that keeps this dataset from loading, each as one message; empty when it will load.

    Reads every picture. A subject on the hub is downloaded for it, once and for all.
    """
    try:
        if cfg.source == "storybook":
            _storybook_key(cfg)
            return []
        return [fault for path in image_files(_folder(cfg)) for fault in _faults(path)]
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
    found = problems(cfg)
    if found:
        raise ConfigError(found)
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
    )


def warnings(subject: Subject, resolution: int) -> list[str]:
    """What a person would want to know about these pictures before spending hours on them.

    Args:
        subject: a loaded subject.
        resolution: side of a training image in pixels.

    Returns:
        One sentence for each kind of fault: too few, too small, far from square, the same picture twice.
    """
    pictures = {path: _inspect(path) for path in subject.paths}
    sizes = {path: f"{path.name} ({one.width} x {one.height})" for path, one in pictures.items()}
    small = [sizes[path] for path, one in pictures.items() if min(one.width, one.height) < resolution]
    oblong = [
        sizes[path]
        for path, one in pictures.items()
        if max(one.width, one.height) > OBLONG * min(one.width, one.height)
    ]
    said = []
    if len(pictures) < FEW:
        said.append(f"subject {subject.name} has only {count(len(pictures), 'picture')}: 4 to 6 are usual")
    if small:
        said.append(f"smaller than the resolution of {resolution} px and therefore enlarged: {', '.join(small)}")
    if oblong:
        said.append(f"far from square, so a crop loses much of the picture: {', '.join(oblong)}")
    said += [f"the same picture {len(names)} times: {', '.join(names)}" for names in _repeated(pictures)]
    return said


@dataclass(frozen=True)
class _Picture:
    width: int
    height: int
    pixels: str
    """sha256 of the decoded picture: equal for a copy saved in another lossless format."""


def _inspect(path: Path) -> _Picture:
    """Size and content of a picture as `read_rgb` sees it.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        status = path.stat()
    except OSError:
        return _inspect_unchanged(path, 0, 0)  # where read_rgb says why; a failure is never remembered
    return _inspect_unchanged(path, status.st_mtime_ns, status.st_size)


# A sweep asks for the same few pictures before each of its runs.
@lru_cache(maxsize=4096)
def _inspect_unchanged(path: Path, _modified_ns: int, _bytes: int) -> _Picture:
    image = read_rgb(path)
    return _Picture(image.width, image.height, hashlib.sha256(image.tobytes()).hexdigest())


def _faults(path: Path) -> tuple[str, ...]:
    """Why a picture cannot be read; empty when it can."""
    try:
        _inspect(path)
    except ConfigError as error:
        return error.problems
    return ()


def _repeated(pictures: dict[Path, _Picture]) -> list[list[str]]:
    """Names of the files that show the same pixels, one list for each picture that occurs more than once."""
    names: dict[_Picture, list[str]] = {}
    for path, picture in pictures.items():
        names.setdefault(picture, []).append(path.name)
    return [group for group in names.values() if len(group) > 1]


def _folder(cfg: DatasetConfig) -> Path:
    """The folder of the subject's pictures as an absolute path; it exists and holds at least one.

    Raises:
        ConfigError: there is none, telling what is there.
    """
    if cfg.path is not None:
        said = f"dataset.path={cfg.path}"
    elif cfg.source == "folder":
        raise ConfigError("dataset.path=null: say which folder holds the subject's pictures, dataset.path=FOLDER")
    elif cfg.root is not None:
        said = f"dataset.root={cfg.root}, dataset.name={cfg.name}"
    else:
        said = f"dataset.hub={cfg.hub}, dataset.name={cfg.name}"
    try:
        return _with_pictures(_existing(_place(cfg), said), said)
    except OSError as error:  # no right to look there, say, or a name too long for the disk
        raise ConfigError(f"{said}: cannot be reached ({error})") from error


def _place(cfg: DatasetConfig) -> Path:
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
        raise ConfigError(
            f"dataset.hub={hub}: subject {name} could not be downloaded ({first_line(error, typed=True)}); "
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
        given = "path" if cfg.path is not None else "root"
        raise ConfigError(
            f"dataset.{given}={getattr(cfg, given)}: has no effect on a drawn subject; "
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


def _existing(folder: Path, said: str) -> Path:
    """The folder itself, once it is known to be one.

    Args:
        folder: absolute.
        said: how the config names it, the start of the message.

    Raises:
        ConfigError: it is a file, or missing; then with what lies where it should be.
    """
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ConfigError(f"{said}: is a file; give the folder that holds it, {folder.parent}")
    if not folder.parent.is_dir():
        raise ConfigError(f"{said}: there is no folder {folder}, nor the one above it")
    siblings = _names(folder.parent, Path.is_dir)
    holds = f"; {folder.parent} holds {listed(siblings, _MOST)}" if siblings else ", nor any other beside it"
    raise ConfigError(f"{said}: there is no folder {folder}{holds}{did_you_mean(folder.name, siblings)}")


def _with_pictures(folder: Path, said: str) -> Path:
    """The same for an existing folder that must hold pictures; if it has none, the message says what it has."""
    if image_files(folder):
        return folder
    below = _names(folder, lambda path: path.is_dir() and any(map(is_image, path.iterdir())))
    hint = f"; there are pictures one level down, in {listed(below, _MOST)}" if below else ""
    raise ConfigError(f"{said}: no picture in {folder}, {_contents(folder)}{hint}")


def _contents(folder: Path) -> str:
    """What a folder without pictures holds: "only 2 .txt files and 1 folder"."""
    kinds = Counter("folder" if path.is_dir() else f"{path.suffix or path.name} file" for path in folder.iterdir())
    if not kinds:
        return "it is empty"
    return "only " + listed([count(number, kind) for kind, number in sorted(kinds.items())])


def _names(folder: Path, wanted: Callable[[Path], bool]) -> list[str]:
    """Sorted names in a folder, hidden ones left out."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".") and wanted(path))
