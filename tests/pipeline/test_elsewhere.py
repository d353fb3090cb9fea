"""LoRAs of other trainers in runs: measured in place of a trained one, and what training starts from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import dbexp
from dbexp.core.hashing import file_hash
from dbexp.core.store import Store
from dbexp.evaluate.columns import COLUMNS
from dbexp.models import LoraFile, Model, foreign_lora, lora_file
from dbexp.pipeline import halving
from dbexp.pipeline.plan import PlannedRun
from dbexp.runs.folder import RunFolder
from dbexp.train.result import Trained, inputs_of
from dbexp.train.train import train
from tests import builders, sweeps


def kohya(folder: Path, ranks: dict[str, int] | None = None, name: str = "theirs") -> Path:
    """A file in kohya's names, whose alpha is half of its rank."""
    ranks, base = ranks or {"unet": 2}, builders.model()
    adapter = builders.adapter(base, ranks, {part: rank / 2 for part, rank in ranks.items()}, strength=0.3)
    weights = {site: (down.detach(), adapter.up[site].T.contiguous().detach()) for site, down in adapter.down.items()}
    path = folder / f"{name}.safetensors"
    lora_file.write(LoraFile(weights, adapter.alphas, {}), path, base, "kohya")
    return path


def tiny(store: Path, *words: str) -> list[str]:
    return [*sweeps.tiny(store), "lora.rank=2", "model.device=cpu", "model.precision=fp32", *words]


# -- in place of training ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A sweep with a run of its own and a LoRA of somebody else, and its file."""
    folder = tmp_path_factory.mktemp("sweep")
    theirs = kohya(folder)
    outcome = sweeps.dbexp_command(
        folder, "-m", "model=random", *tiny(folder / "store", f"lora.path=null,{theirs}", "hydra.sweep.dir=sweep")
    )
    assert outcome.status == 0, outcome.err
    assert "2 jobs: 1 to train in 1 pack, 0 in the store, 1 with a LoRA of their own" in outcome.err
    return folder / "sweep", theirs


def test_it_stands_in_the_same_table(sweep: tuple[Path, Path]) -> None:
    own, theirs = sorted(sweeps.results(sweep[0]), key=lambda row: row["job"])
    assert (own["lora.path"], theirs["lora.path"]) == ("null", str(sweep[1]))
    paper = [name for name in COLUMNS if own.get(name)]
    assert {"dino", "clip_i", "clip_t", "pres", "div"} <= set(paper)
    assert all(theirs[name] for name in paper) and any(theirs[name] != own[name] for name in paper)
    assert "lora.path" in (sweep[0] / "report.html").read_text()


def test_what_its_run_leaves(sweep: tuple[Path, Path]) -> None:
    own, theirs = RunFolder(sweep[0] / "0"), RunFolder(sweep[0] / "1")
    record = json.loads(theirs.metrics.read_text())
    assert record["train"]["steps"] == 0 and record["train"]["source"] == file_hash(sweep[1])
    tensors = safetensors.torch.load_file(sweep[1])
    assert sum(record["train"]["parameters"].values()) == sum(
        value.numel() for key, value in tensors.items() if not key.endswith("alpha")
    )
    assert not theirs.history.exists() and not theirs.prior.exists()
    read = lora_file.read(theirs.lora, builders.model())
    assert record["lora"] == file_hash(theirs.lora) and read.provenance == {"source": file_hash(sweep[1])}
    # the base model drew once for both, and each draws on the same noise
    for name in ("base_samples", "base_class_samples"):
        ours, others = (sorted(getattr(run, name).rglob("*.png")) for run in (own, theirs))
        assert [file_hash(path) for path in ours] == [file_hash(path) for path in others] != []


def test_the_same_file_again_computes_nothing(sweep: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it lies: it is known by its content."""
    folder = sweep[0].parent
    other = folder / "renamed.safetensors"
    other.write_bytes(sweep[1].read_bytes())
    monkeypatch.setattr("dbexp.sample.draw.sample_batch", lambda *_: pytest.fail("drawn again"))
    monkeypatch.setattr("dbexp.models.foreign_lora.read", lambda *_: pytest.fail("read again"))
    words = tiny(folder / "store", f"lora.path={other}", "hydra.run.dir=again", "train.steps=7", "prior.weight=0.5")
    outcome = sweeps.dbexp_command(folder, "model=random", *words)
    assert outcome.status == 0, outcome.err
    assert "steps for each of" not in outcome.err, "no advice on training"


def test_its_strength_is_a_parameter(sweep: tuple[Path, Path]) -> None:
    folder = sweep[0].parent
    words = tiny(folder / "store", f"lora.path={sweep[1]}", "sample.lora_scale=0.5,1", "hydra.sweep.dir=scales")
    outcome = sweeps.dbexp_command(folder, "-m", "model=random", *words)
    assert outcome.status == 0, outcome.err
    one, other = sweeps.results(folder / "scales")
    assert one["clip_i"] != other["clip_i"]


def refusals(theirs: Path, folder: Path) -> dict[str, tuple[Sequence[str], str]]:
    text = kohya(folder, {"unet": 2, "text_encoder": 2}, "text")
    broken = folder / "broken.safetensors"
    tensors = safetensors.torch.load_file(theirs)
    safetensors.torch.save_file({f"x.{key}": value for key, value in tensors.items()}, broken)
    larger = kohya(folder, {"unet": 4}, "larger")
    everywhere = folder / "everywhere.safetensors"
    sites = [site for site in builders.model().layers("unet") if ".ff." in site]
    pairs = {
        f"lora_unet_{site.replace('.', '_')}.lora_{way}.weight": torch.ones((1, width) if way == "down" else (out, 1))
        for site in sites
        for out, width in [builders.model().layers("unet")[site]]
        for way in ("down", "up")
    }
    safetensors.torch.save_file(pairs, everywhere)
    return {
        "no file": (["lora.path=nowhere.safetensors"], "lora.path=nowhere.safetensors: there is no such file"),
        "another architecture": ([f"lora.path={broken}"], "is a LoRA of another architecture than"),
        "both": ([f"lora.path={theirs}", f"lora.init={theirs}"], "has no effect with lora.path"),
        "no text encoder": ([f"lora.init={text}"], "adapts the text_encoder; give lora.text_encoder=true"),
        "a larger rank": ([f"lora.init={larger}"], "has rank 4 in the unet, more than lora.rank=2; give lora.rank=4"),
        "other layers": ([f"lora.init={everywhere}"], "that lora.sites=attention does not (down_blocks"),
        "a remedy": ([f"lora.init={everywhere}"], "; give lora.sites=linear"),
    }


@pytest.mark.parametrize("case", ["no file", "another architecture", "both", "no text encoder", "a larger rank",
                                  "other layers", "a remedy"])  # fmt: skip
def test_what_is_refused(case: str, sweep: tuple[Path, Path], tmp_path: Path) -> None:
    """With one message, before anything is computed."""
    words, says = refusals(sweep[1], tmp_path)[case]
    outcome = sweeps.dbexp_command(tmp_path, "model=random", *tiny(tmp_path / "store", *words), "hydra.run.dir=run")
    assert outcome.status == 1 and says in outcome.err, outcome.err
    assert "Traceback" not in outcome.err
    assert not {path.name for path in (tmp_path / "store").glob("*")} & {"train", "prior", "sample", "latents"}


# -- where training starts --------------------------------------------------------------------------------------------


@pytest.fixture
def base() -> Model:
    return builders.model()


def begin(path: Path, store: Path) -> foreign_lora.ForeignLora:
    return foreign_lora.open_lora(str(path), builders.model(), Store(store), "lora.init")


def one(made: Trained | Exception) -> Trained:
    assert isinstance(made, Trained), made
    return made


def test_training_goes_on_from_the_function_of_the_file(base: Model, tmp_path: Path) -> None:
    """At a rate of next to nothing it stays the LoRA that it was, whatever rank and alpha are now."""
    theirs = kohya(tmp_path)
    made = builders.training(weight=0.0, lr=1e-12, steps=1, adapters={"rank": 5, "alpha": 3.0})
    begun = begin(theirs, tmp_path / "store")
    trained = one(train([replace(made, start=begun)], base, Store(tmp_path / "store"))[0])
    ours, expected = (
        {name: up @ down for name, (down, up) in lora_file.read(path, base).updates().items()}
        for path in (trained.lora, begun.path)
    )
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-6)
    down, up = lora_file.read(trained.lora, base).weights[next(iter(ours))]
    assert down[2:].std() > 0.01 and up[:, 2:].abs().max() < 1e-6, "the rank that is left is fresh, and free to learn"


def test_the_key_has_the_files_content(base: Model, tmp_path: Path) -> None:
    made = builders.training()
    assert "init" not in inputs_of(made, base)["lora"], "what was trained before is still found"
    theirs, store = kohya(tmp_path), tmp_path / "store"
    begun = replace(made, start=begin(theirs, store))
    inputs = inputs_of(begun, base)
    assert inputs["lora"]["init"] == file_hash(theirs)
    moved = theirs.rename(tmp_path / "elsewhere.safetensors")
    assert inputs_of(replace(made, start=begin(moved, store)), base) == inputs


def test_lanes_equal_solo_runs(base: Model, tmp_path: Path) -> None:
    """One from fresh weights, one from a file, one from another of smaller rank."""
    files = [begin(kohya(tmp_path, {"unet": rank}, f"r{rank}"), tmp_path / "files") for rank in (4, 1)]
    lanes = [builders.training(seed=1), *(replace(builders.training(seed=2), start=file) for file in files)]
    packed = [one(made) for made in train(lanes, base, Store(tmp_path / "pack"))]
    for number, lane in enumerate(lanes):
        alone = one(train([lane], base, Store(tmp_path / f"solo{number}"))[0])
        losses = [[row["loss"] for row in made.history] for made in (packed[number], alone)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        for name, value in builders.tensors(alone.lora).items():
            torch.testing.assert_close(builders.tensors(packed[number].lora)[name], value, rtol=0, atol=1e-5)
    assert len({made.history[0]["loss"] for made in packed}) == 3


def test_a_run_that_goes_on(sweep: tuple[Path, Path]) -> None:
    """The path is no part of what the LoRA says of itself, and the first loss is that of the file."""
    folder = sweep[0].parent
    words = tiny(folder / "store", f"lora.init=null,{sweep[1]}", "hydra.sweep.dir=init")
    outcome = sweeps.dbexp_command(folder, "-m", "model=random", *words)
    assert outcome.status == 0, outcome.err
    fresh, begun = (
        [json.loads(line)["loss"] for line in RunFolder(folder / "init" / name).history.read_text().splitlines()]
        for name in "01"
    )
    assert len(fresh) == len(begun) == 4 and not np.isclose(fresh[0], begun[0], rtol=1e-4)
    lora = RunFolder(folder / "init" / "1").lora
    provenance = lora_file.read(lora, builders.model()).provenance
    assert provenance["inputs"]["lora"]["init"] == file_hash(sweep[1])
    assert str(folder) not in json.dumps(provenance)


def test_in_a_race_it_neither_trains_nor_is_judged(sweep: tuple[Path, Path]) -> None:
    folder = sweep[0].parent
    configs = [
        dbexp.compose(["model=random", *tiny(folder / "store", *more)]) for more in ([], [f"lora.path={sweep[1]}"])
    ]
    runs = [PlannedRun(number, (), (), config) for number, config in enumerate(configs)]
    seen: list[set[int]] = []

    def nobody(values: Mapping[int, Sequence[float]], place: int) -> set[int]:
        seen.append(set(values))
        return set()

    judging = halving.Judging("loss")

    def reach(at_rung: Sequence[PlannedRun]) -> Mapping[int, tuple[halving.Judgement, Path | None]]:
        return halving.reach(at_rung, judging, None)

    result = halving.race(runs, [2], judging, nobody, reach)
    assert seen == [{0}] and set(result.judgements) == {0} and not result.stops
    alone = halving.race(runs[:1], [2], judging, nobody, reach)
    assert result.passes == alone.passes
    nothing = halving.race(runs[1:], [2], judging, nobody, reach)
    assert nothing.passes["training_all"] == nothing.passes["drawing_all"] == 0
