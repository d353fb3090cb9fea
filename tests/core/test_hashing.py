"""Seeds of streams of randomness (hashes of files and keys are tested with the store)."""

from __future__ import annotations

from dbexp.core.hashing import seed_of


def test_named_streams_never_share_a_seed() -> None:
    names: list[tuple[str | int, ...]] = [(), ("a",), ("b",), ("a", 1), ("a", "1"), ("a1",), ("a", 1, 2), ("a", 12)]
    seeds = {seed_of(seed, *name) for seed in (0, 1, 2**40) for name in names}
    assert len(seeds) == 3 * len(names)
    assert all(0 <= seed < 2**60 for seed in seeds)
