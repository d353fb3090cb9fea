"""The YAML files of config groups, and what they offer."""

from __future__ import annotations

from pathlib import Path

from dbexp.config.groups import conf_dir, options


def test_options_of_several_folders(tmp_path: Path) -> None:
    (tmp_path / "model" / "deep").mkdir(parents=True)
    for name in ("b10", "b9", "deep/a"):
        (tmp_path / "model" / f"{name}.yaml").touch()
    (tmp_path / "hydra" / "help").mkdir(parents=True)
    (tmp_path / "hydra" / "help" / "mine.yaml").touch()
    (tmp_path / "config.yaml").touch()
    assert options([tmp_path]) == {"model": ["b9", "b10", "deep/a"]}
    assert {"b9", "sd15"} <= set(options([conf_dir(), tmp_path])["model"])


def test_conf_dir_is_absolute() -> None:
    assert conf_dir().is_absolute()
    assert (conf_dir() / "config.yaml").is_file()
