"""The record of code, libraries and machine."""

from __future__ import annotations

import getpass
import json
import platform
import re
import socket
import subprocess
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dbexp.core import provenance

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def forget_git_state() -> Iterator[None]:
    provenance.git_state.cache_clear()
    yield
    provenance.git_state.cache_clear()


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one commit that holds dbexp/code.py."""
    git(tmp_path, "init", "-q")
    (tmp_path / "dbexp").mkdir()
    (tmp_path / "dbexp" / "code.py").write_text("x = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def test_the_record_is_json_and_names_what_ran() -> None:
    record = provenance.collect(CPU)
    assert json.loads(json.dumps(record)) == record
    assert record["packages"]["torch"] == version("torch")
    assert set(record["packages"]) == set(provenance.PACKAGES)
    assert record["device"]["type"] == "cpu" and record["device"]["name"]
    assert record["threads"] == torch.get_num_threads()
    assert record["cpus"] >= 1
    assert re.fullmatch(r"3\.\d+\.\d+\S*", record["python"])


def test_time_is_now_in_utc() -> None:
    time = datetime.fromisoformat(provenance.collect(CPU)["time"])
    assert time.utcoffset() == timedelta(0)
    assert abs(datetime.now(timezone.utc) - time) < timedelta(minutes=1)


def test_nothing_tells_who_ran_it_or_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "tell-tale-host")
    text = "\n".join(texts(provenance.collect(CPU)))
    # Short names (vm, a) occur within other words, so they are looked for as whole words.
    for private in (socket.gethostname(), platform.node(), getpass.getuser(), str(Path.home()), str(Path.cwd())):
        assert not re.search(rf"(?<![\w.]){re.escape(private)}(?![\w.])", text), private


def texts(node: Any) -> list[str]:
    """Every string value of nested dicts."""
    if isinstance(node, dict):
        return [text for value in node.values() for text in texts(value)]
    return [node] if isinstance(node, str) else []


def test_a_clean_checkout(checkout: Path) -> None:
    assert provenance.git_state(checkout) == {"commit": git(checkout, "rev-parse", "HEAD"), "dirty": False}


@pytest.mark.parametrize("name", ["dbexp/code.py", "dbexp/new.py", "conf/new.yaml"])
def test_changed_and_new_code_is_dirty(checkout: Path, name: str) -> None:
    (checkout / name).parent.mkdir(exist_ok=True)
    (checkout / name).write_text("x = 2\n")
    state = provenance.git_state(checkout)
    assert state is not None and state["dirty"] is True


def test_notes_beside_the_code_are_not_dirt(checkout: Path) -> None:
    (checkout / "notes.txt").write_text("buy milk\n")
    state = provenance.git_state(checkout)
    assert state is not None and state["dirty"] is False


def test_no_checkout_no_state(tmp_path: Path) -> None:
    assert provenance.git_state(tmp_path) is None


def test_a_repository_around_the_installation_does_not_count(checkout: Path) -> None:
    installed = checkout / "venv" / "site-packages"
    installed.mkdir(parents=True)
    assert provenance.git_state(installed) is None


def test_a_hooks_environment_does_not_mislead(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    other = tmp_path_factory.mktemp("other")
    git(other, "init", "-q")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    state = provenance.git_state(checkout)
    assert state is not None and state["commit"] == commit


def test_without_git_there_is_no_state(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert provenance.git_state(checkout) is None


def test_a_missing_package_is_null(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGES", ("torch", "no-such-package"))
    assert provenance.package_versions.__wrapped__() == {"torch": version("torch"), "no-such-package": None}


def test_peak_memory_grows_with_what_is_held() -> None:
    before = provenance.peak_memory(CPU)
    held = torch.ones(64 << 18)  # 64 MiB of float32, all written
    after = provenance.peak_memory(CPU)
    assert after["cuda_mib"] is None
    assert before["resident_mib"] is not None and after["resident_mib"] is not None
    assert 50 < before["resident_mib"] <= after["resident_mib"] < 1 << 20
    assert after["resident_mib"] >= 64 and held.sum() == 64 << 18


def test_a_cuda_device_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(name="Some GPU", total_memory=24 << 30, major=8, minor=9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 << 30)
    device = torch.device("cuda", 1)
    record = provenance.device_record(device)
    assert (record["type"], record["name"]) == ("cuda", "Some GPU")
    assert (record["memory_mib"], record["capability"]) == (24 * 1024, "8.9")
    assert provenance.peak_memory(device)["cuda_mib"] == 3 * 1024


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/me/photos/rex", "rex"),
        ("~/weights/a.safetensors", "a.safetensors"),
        ("C:\\Users\\me\\rex", "rex"),
        ("local-dir:/data/clip", "local-dir:clip"),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
        ("a {token} {class} / a cat", "a {token} {class} / a cat"),
        ("photos/rex", "photos/rex"),
        (3, 3),
    ],
)
def test_public(value: Any, shown: Any) -> None:
    assert provenance.public({"a": [value]}) == {"a": [shown]}
