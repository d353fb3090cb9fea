"""Scripts of benchmarks/ that are kept: tiny sizes run on a CPU, the full one on a card that is not there."""

from __future__ import annotations

import importlib.util
import itertools
import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

import dbexp
from dbexp.estimate.card import PretendedCard
from dbexp.storybook.world.subjects import SUBJECTS, oracle_pictures
from dbexp.storybook.world.world import VERSION, draw, scene_of


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    return script("gpu")


def script(name: str) -> ModuleType:
    path = Path(dbexp.__file__).parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def results(folder: Path) -> dict[str, list[dict[str, float]]]:
    found: dict[str, list[dict[str, float]]] = json.loads((folder / "gpu.json").read_text())["parts"]
    return found


def test_lanes_stand_beside_a_plain_loop(gpu: ModuleType, tmp_path: Path) -> None:
    assert gpu.main([f"out={tmp_path}", "quick=true", "device=cpu", "parts=ceilings,lanes,sample"]) == 0
    parts = results(tmp_path)
    plain, solo, two = parts["lanes"]
    assert [row["lanes"] for row in (plain, solo, two)] == [1, 1, 2]
    assert plain["x_plain"] == solo["x_solo"] == 1
    assert all(row["least"] <= row["ms"] <= row["most"] and row["TFLOP_s"] > 0 for row in parts["lanes"])
    text = (tmp_path / "gpu.md").read_text()
    assert "## lanes" in text and "These numbers mean nothing" in text


def test_a_part_that_fails_costs_no_other(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offender(bench: object) -> list[dict[str, float]]:
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(gpu.PARTS, "prior", offender)
    assert gpu.main([f"out={tmp_path}", "quick=true", "device=cpu", "parts=prior,ceilings"]) == 1
    assert "no such kernel" in str(results(tmp_path)["prior"]) and len(results(tmp_path)["ceilings"]) == 3


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd", "flux2_klein"])
def test_the_full_size_runs(gpu: ModuleType, family: str, tmp_path: Path) -> None:
    with PretendedCard():
        words = [f"out={tmp_path}", f"family={family}", "parts=lanes", "counts=2", "steps=1"]
        assert gpu.main(words) == 0
    assert results(tmp_path)["lanes"][1]["peak_MiB"] > 2000


@pytest.mark.slow
def test_every_part(gpu: ModuleType, tmp_path: Path) -> None:
    assert gpu.main([f"out={tmp_path}", "quick=true", "device=cpu"]) == 0
    assert list(results(tmp_path)) == list(gpu.PARTS)


def test_mistakes(gpu: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="choose of ceilings"):
        gpu.main([f"out={tmp_path}", "parts=speed"])


@pytest.mark.parametrize("subject", ["dog", "dog2", "cat", "backpack", "teapot"])
def test_markings_are_counted_where_they_are_drawn(subject: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the subject's own, none of the same character without, one where one is left."""
    markings = script("markings")
    monkeypatch.setattr(markings, "POSES", 12)
    who, prompt = SUBJECTS[subject].identity, f"a sks {subject.rstrip('2')} on the beach"
    (true,) = oracle_pictures(subject, prompt, 1)
    found = markings.markings(subject, prompt, true)
    assert set(found) <= who.markings and all(found.values()) and markings.carries(found)
    alone = [frozenset({name}) for name in found] if who.live else []  # a monster gives the pocket another colour
    for kept in (frozenset(), *alone):
        rng = random.Random(f"storybook {VERSION}/oracle/{subject}/{prompt}/0")
        picture = draw(replace(who, markings=kept), scene_of(prompt), rng)
        assert {name for name, there in markings.markings(subject, prompt, picture).items() if there} == kept
    assert not markings.carries({"heart": True, "socks": False}), "half of them is not more than half"


def test_what_a_search_asked_for_is_a_part_of_the_grid() -> None:
    pytest.importorskip("optuna")
    search = script("search")
    grid = dict(enumerate(itertools.product((4.0, 16.0), (1e-3, 2e-3), (0.0, 1.0), ("constant",))))
    whole = search.Asked(dict.fromkeys(grid.values(), search.STEPS), set(grid.values()))
    judged = {number: [(float(number), 40)] * len(search.RUNGS) for number in grid}
    part = search.replayed(judged, grid, "successive", len(grid), sorted(grid))
    assert sorted(part.steps.values()) == [25] * 4 + [50] * 2 + [100, 200] and part.finished == {grid[0]}
    training, judging, images = search.shares(part, whole)
    rows = [3 * steps * (2 if point[2] else 1) for point, steps in part.steps.items()]
    assert whole.training() == 3 * 200 * (4 + 8) and judging == pytest.approx((8 + 4 + 2) * 40 / whole.training())
    assert training == pytest.approx(sum(rows) / whole.training() + judging) and images < training

    values = {point: (0.3, 0.9, 0.5, 0.1, 0.7)[number] for number, point in list(grid.items())[:5]}
    for count in (1, 2, 4):
        lost = [0.9 - max(values[point] for point in points) for points in itertools.combinations(values, count)]
        assert search.chance(values, count) == pytest.approx(sum(lost) / len(lost))
