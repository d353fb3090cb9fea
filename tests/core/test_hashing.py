"""Seeds of streams of randomness, and bytes that carry their hash (keys and hashes of files: see the store)."""

from __future__ import annotations

import pytest

from dbexp.core.hashing import seed_of, with_hash, without_hash


def test_named_streams_never_share_a_seed() -> None:
    names: list[tuple[str | int, ...]] = [(), ("a",), ("b",), ("a", 1), ("a", "1"), ("a1",), ("a", 1, 2), ("a", 12)]
    seeds = {seed_of(seed, *name) for seed in (0, 1, 2**40) for name in names}
    assert len(seeds) == 3 * len(names)
    assert all(0 <= seed < 2**60 for seed in seeds)


def test_bytes_that_carry_their_hash() -> None:
    data = bytes(range(50))
    carried = with_hash(data)
    assert without_hash(carried) == data and without_hash(data) == data
    assert without_hash(with_hash(b"")) == b"" and without_hash(b"") == b""
    for position in range(len(data)):
        flipped = carried[:position] + bytes([carried[position] ^ 1]) + carried[position + 1 :]
        with pytest.raises(ValueError, match="not those that were saved"):
            without_hash(flipped)
