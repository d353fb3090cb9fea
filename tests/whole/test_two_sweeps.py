"""Two processes that run the same sweep at once, on one store: each thing is made by one of them, and both have all."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from dbexp.core.store import Entry
from dbexp.sample import png
from tests.sweeps import dbexp_command, fork, tiny

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="only here can a process be forked")


def begin(folder: Path, name: str) -> int:
    """Run the sweep in a process of its own, which notes in made.log every entry and every picture that it makes."""
    store = folder / "store"

    def work() -> int:
        publish, save = Entry.publish, png.save

        def note(what: str, path: Path) -> None:
            with (folder / "made.log").open("a") as file:
                file.write(f"{what} {path.relative_to(store)} {name}\n")

        def noted_publish(self: Entry) -> None:
            note("entry", self.path)
            publish(self)

        def noted_save(pixels: object, path: Path, metadata: object) -> None:
            note("picture", path)
            save(pixels, path, metadata)  # type: ignore[arg-type]  # whatever png.save takes

        Entry.publish, png.save = noted_publish, noted_save  # type: ignore[method-assign]  # in this process alone
        swept = ["lora.rank=2,3", "train.steps=3,5", "sample.images_per_prompt=1", "sample.class_images=2"]
        outcome = dbexp_command(folder, "-m", f"hydra.sweep.dir={name}", *tiny(store), *swept)
        sys.stderr.write(outcome.err if outcome.status else "")
        return outcome.status

    return fork(work)


def test_they_share_the_work(tmp_path: Path) -> None:
    children = [begin(tmp_path, name) for name in ("one", "other")]
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert statuses == [0, 0]
    first, second = ((tmp_path / name / "results.csv").read_bytes() for name in ("one", "other"))
    assert first == second and first.count(b"finished") == 4
    log = [line.rpartition(" ")[0] for line in (tmp_path / "made.log").read_text().splitlines()]
    assert len(log) == len(set(log))
    kinds = [line.split()[1].split("/")[0] for line in log if line.startswith("entry")]
    assert kinds.count("train") == kinds.count("evaluate") == 4 and kinds.count("prior") == 1
    assert not list((tmp_path / "store").rglob("*.partial"))
