"""The hub: where a base model comes from, its licence, and the upload of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from omegaconf import OmegaConf

from dbexp.config.families import FAMILIES
from dbexp.config.groups import conf_dir
from dbexp.config.schema import ModelConfig
from dbexp.core.errors import ConfigError, first_line
from dbexp.export.settings import ExportConfig

SHIPPED_LICENCE = "apache-2.0"
"""Of the models that come with dbexp."""


def origin(model: ModelConfig, settings: ExportConfig) -> tuple[str | None, str | None]:
    """Hub id and licence of the base model of a run, None for what is not known.

    Raises:
        ConfigError: the hub must be told a licence, and none is known.
    """
    shipped = model.path == "random" or model.path.startswith("package:")
    base = settings.base
    if base is None and not shipped:
        option = conf_dir() / "model" / f"{model.name}.yaml"  # a local copy of a model that has an option
        published = OmegaConf.select(OmegaConf.load(option), "path") if option.is_file() else None
        base = next((path for path in (model.path, published) if _is_hub_id(path)), None)
    licence = settings.licence or (
        SHIPPED_LICENCE if shipped and base is None else FAMILIES[model.family].licences.get(base or "")
    )
    if licence is None and settings.push and base is not None:
        licence = licence_on_hub(base)
    if licence is None and settings.push:
        raise ConfigError(
            f"licence=null: the licence of the base model ({base or model.name}) is not known, and the hub must be "
            "told; give licence=NAME, such as licence=openrail++"
        )
    return base, licence


def _is_hub_id(path: str | None) -> bool:
    """Whether a model's path is one of the hub and not of this machine."""
    if path is None or path.startswith((".", "~", "/")) or path.count("/") != 1 or Path(path).suffix == ".safetensors":
        return False
    return not Path(path).exists()


def licence_on_hub(base: str) -> str | None:
    """The licence on the hub's card of a model; None if the hub does not tell, or cannot be reached."""
    try:
        data = huggingface_hub.model_info(base).card_data
    except Exception:  # the client raises half a dozen unrelated classes for "not to be had"
        return None
    licence = None if data is None else data.get("license")
    return licence if isinstance(licence, str) else None


def push(folder: Path, files: Sequence[str], repository: str, *, private: bool) -> str:
    """Upload files of a folder, making the repository if there is none. Other files there stay.

    Args:
        folder: local.
        files: relative to it; nothing else is uploaded.
        repository: user/name.
        private: of a repository that is made.

    Returns:
        The address of the commit.

    Raises:
        ConfigError: the hub did not take it; the local files stay.
    """
    api = huggingface_hub.HfApi(library_name="dbexp")
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=list(files), commit_message="Upload by dbexp-export"
        )
    except Exception as error:
        raise ConfigError(
            f"push={repository}: the hub did not take it ({first_line(error, typed=True)}); `hf auth login` gives this "
            f"machine a token. Everything is in {folder}, and the same command tries again"
        ) from None
    return str(commit)
