"""The feature cache on disk."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest

from dbexp.evaluate.feature_cache import DiskCache, feature_key


def test_what_is_put_comes_back_in_another_process(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32)
    DiskCache(tmp_path).put("abcd", array)
    loaded = DiskCache(tmp_path).get("abcd")
    assert loaded is not None and loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, array)
    assert DiskCache(tmp_path).get("abce") is None
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*.npy")] == [Path("ab/cd.npy")]


def test_keys_differ_by_backbone_transform_and_pictures() -> None:
    keys = [
        feature_key("dino", "1", "aa"),
        feature_key("clip", "1", "aa"),
        feature_key("dino", "2", "aa"),
        feature_key("dino", "1", "ab"),
        feature_key("dino", "1", "aa", "ab"),
        feature_key("dino", "1", "ab", "aa"),
    ]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"no array at all"])
def test_a_damaged_file_is_forgotten_and_overwritten(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    cache = DiskCache(tmp_path)
    cache.put("abcd", np.ones(3))
    cache.path("abcd").write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        assert cache.get("abcd") is None
    assert "damaged" in caplog.text
    cache.put("abcd", np.ones(3))
    assert cache.get("abcd") is not None


def test_no_flipped_bit_goes_unnoticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = DiskCache(tmp_path)
    cache.put("abcd", np.arange(5, dtype=np.float32))
    whole = cache.path("abcd").read_bytes()
    for position in range(len(whole)):
        cache.path("abcd").write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert cache.get("abcd") is None
    assert "pickle" not in caplog.text.lower(), "a library's advice to load what is damaged all the same"


def test_a_file_of_an_older_version_is_read(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)
    cache.put("abcd", np.ones(3))
    cache.path("abcd").write_bytes(cache.path("abcd").read_bytes()[:-39])
    loaded = cache.get("abcd")
    assert loaded is not None and loaded.tolist() == [1, 1, 1]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        DiskCache(tmp_path).put("abcd", np.ones(3))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("writes", [1, 2, 3])
def test_a_batch_is_remembered_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """What a dead process left is finished by the next: part of a batch, computed again, has other last bits."""
    batch = {"aaaa": np.ones(3), "bbbb": np.zeros(2), "cccc": np.arange(4.0)}
    replace, count = os.replace, 0

    def dies(source: Path, target: Path) -> None:
        nonlocal count
        count += 1
        if count > writes:
            raise KeyboardInterrupt
        replace(source, target)

    cache = DiskCache(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("os.replace", dies)
        with pytest.raises(KeyboardInterrupt):
            cache.put_all(batch)
    assert cache.get("cccc") is None
    after = DiskCache(tmp_path)
    for key, array in batch.items():
        loaded = after.get(key)
        assert loaded is not None
        np.testing.assert_array_equal(loaded, array)
    assert not list(tmp_path.rglob("*.npz")), "and nothing else stays"


def test_a_damaged_batch_is_forgotten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "pending").mkdir()
    (tmp_path / "pending" / "0.npz").write_bytes(b"PK no archive")
    with caplog.at_level(logging.WARNING):
        assert DiskCache(tmp_path).get("abcd") is None
    assert "damaged" in caplog.text and not list(tmp_path.rglob("*.npz"))
