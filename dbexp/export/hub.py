"""The hub: what it says of a base model, and the upload of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import huggingface_hub

from dbexp.core.errors import ConfigError, first_line


def licence(base: str) -> str | None:
    """The licence on the hub's card of a model; None if the hub does not tell, or cannot be reached."""
    try:
        data = huggingface_hub.model_info(base).card_data
    except Exception:  # the client raises half a dozen unrelated classes for "not to be had"
        return None
    found = None if data is None else data.get("license")
    return found if isinstance(found, str) else None


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
