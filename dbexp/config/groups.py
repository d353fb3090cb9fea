"""The YAML files of config groups, and what they offer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from dbexp.config.values import flatten
from dbexp.core.errors import ConfigError


def conf_dir() -> Path:
    """The folder of YAML files: inside the installed package, or beside it in a checkout.

    Raises:
        ConfigError: neither exists, so the installation is damaged.
    """
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "conf", package.parent / "conf"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise ConfigError(f"no conf/config.yaml beside or inside {package}: reinstall dbexp")


def folders(cfg: DictConfig) -> list[Path]:
    """Where Hydra searched options, for a composed config with its `hydra` node."""
    return [Path(source.path) for source in cfg.hydra.runtime.config_sources if source.schema == "file"]


def options(roots: Iterable[Path]) -> dict[str, list[str]]:
    """Group name -> names of its options, as one writes them on the command line.

    Args:
        roots: of config trees; a group is a folder right below one. Hydra's own group is left out.
    """
    names: dict[str, set[str]] = {}
    for root in roots:
        for path in root.glob("*/**/*.yaml"):
            group, *rest = path.relative_to(root).with_suffix("").parts
            if group != "hydra":
                names.setdefault(group, set()).add("/".join(rest))
    return {group: sorted(members, key=_naturally) for group, members in sorted(names.items())}


def option(group: str, name: str) -> dict[str, Any]:
    """A shipped option of a group, as its file has it: interpolations are texts."""
    file = conf_dir() / group / f"{name}.yaml"
    return flatten(yaml.safe_load(file.read_text(encoding="utf-8")) or {})


def options_of(group: str) -> list[dict[str, Any]]:
    """The shipped options of a group, as their files have them: interpolations are texts."""
    files = sorted((conf_dir() / group).glob("**/*.yaml"))
    return [flatten(yaml.safe_load(file.read_text(encoding="utf-8")) or {}) for file in files]


def _naturally(name: str) -> tuple[int, str, int]:
    """Plain names before nested ones, dog2 before dog10."""
    stem = name.rstrip("0123456789")
    return name.count("/"), stem, int(name[len(stem) :] or 0)
