"""Every YAML under conf/ composes, is counted, and means what it says."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from dbexp.config import check, groups
from dbexp.config.schema import Config
from dbexp.train import lr_schedule

Composed = Callable[..., DictConfig]
Checked = Callable[..., Config]

CONF = groups.conf_dir()
OPTIONS = groups.options([CONF])
# what an option cannot know, and the command line must give
NEEDS = {
    "dataset=folder": ("dataset.path=photos", "dataset.class_noun=dog", "dataset.live=true"),
    "model=custom": ("model.name=mine", "model.path=mine.safetensors"),
    "train=cloneofsimo": ("lora.text_encoder=true",),  # it has a rate for the text encoder
}
EVERY_OPTION = [f"{group}={name}" for group, names in OPTIONS.items() for name in names]
# group -> number of options
COUNTS = {
    "dataset": 36,
    "evaluate": 13,
    "experiment": 18,
    "lora": 4,
    "lr_schedule": 5,
    "model": 21,
    "prior": 12,
    "sample": 13,
    "tracking": 3,
    "train": 12,
}


def test_options_are_counted() -> None:
    assert {group: len(names) for group, names in OPTIONS.items()} == COUNTS
    files = [path for path in CONF.rglob("*.yaml") if path.relative_to(CONF).parts[0] != "hydra"]
    assert len(files) == sum(COUNTS.values()) + 2  # config.yaml and wandb_sweep.yaml


@pytest.mark.parametrize("option", EVERY_OPTION)
def test_every_option_composes_and_passes_the_check(checked: Checked, option: str) -> None:
    checked(option, *NEEDS.get(option, ()))


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: path.relative_to(CONF).as_posix())
def test_every_file_opens_with_what_it_is_for(path: Path) -> None:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("# @package")]
    assert re.match(r"# \S.{10,}", lines[0]), f"{path.name} opens with {lines[0]!r}"


def test_the_default_run(checked: Checked) -> None:
    cfg = checked()
    assert (cfg.model.name, cfg.dataset.name, cfg.experiment, cfg.tracking.mode) == (
        "storybook",
        "storybook/dog",
        None,
        "offline",
    )
    assert cfg.sample.resolution == cfg.model.resolution == 64
    assert cfg.model.label
    assert cfg.evaluate.label


# -- who wins ----------------------------------------------------------------------------------------------------------


def test_a_model_brings_its_own_options(composed: Composed) -> None:
    def choices(*overrides: str) -> dict[str, Any]:
        chosen = composed(*overrides, return_hydra_config=True).hydra.runtime.choices
        return {group: chosen[group] for group in ("train", "prior", "sample", "evaluate")}

    quick = {"train": "quick", "prior": "quick", "sample": "quick", "evaluate": "random"}
    assert choices("model=random") == quick
    story = dict.fromkeys(quick, "storybook")
    assert choices() == choices("model=storybook") == story
    assert choices("model=sd15") == {"train": "default", "prior": "default", "sample": "default", "evaluate": "paper"}
    assert choices("model=random", "evaluate=paper") == {**quick, "evaluate": "paper"}
    assert choices("evaluate=paper", "model=random") == {**quick, "evaluate": "paper"}
    assert choices("model=random", "train=diffusers", "prior=none") == {**quick, "train": "diffusers", "prior": "none"}
    assert choices("model=random", "experiment=recipe/cloneofsimo") == {**quick, "train": "cloneofsimo"}


def test_the_command_line_beats_model_and_experiment(checked: Checked) -> None:
    row = "experiment=reference/diffusers/with_prior"
    cfg = checked(row, "model=random", "lora.rank=3", "prior.weight=0.5", "train=cloneofsimo", "seed=1")
    assert (cfg.model.path, cfg.lora.rank, cfg.prior.weight, cfg.seed) == ("random", 3, 0.5, 1)
    assert cfg.train.lr == 5e-4  # of train=cloneofsimo, for the row says nothing about it
    assert (cfg.train.steps, cfg.train.grad_accum) == (500, 2)  # which the row does say


def test_a_recipe_survives_a_random_model(checked: Checked) -> None:
    trained, smoke = (checked("experiment=recipe/diffusers", f"model={name}") for name in ("sd15", "random"))
    assert (smoke.train, smoke.lora, smoke.lr_schedule) == (trained.train, trained.lora, trained.lr_schedule)
    assert smoke.prior.count < trained.prior.count


def test_pictures_follow_the_model(checked: Checked) -> None:
    assert checked("model=sd21").sample.resolution == 768
    assert checked("model=sd21", "model.resolution=512").sample.resolution == 512
    assert checked("model=sd21", "sample.resolution=640").sample.resolution == 640
    assert checked("model=random", "sample=default").sample.resolution == 64


def test_a_preset_knows_its_name(composed: Composed) -> None:
    sweeps = {"reference/diffusers": "reference/diffusers/with_prior"}
    sweeps["reference/cloneofsimo"] = "reference/cloneofsimo/without_prior_300"
    sweeps["benchmark/methods"] = "benchmark/method/diffusers"
    for name in OPTIONS["experiment"]:
        assert composed(f"experiment={name}").experiment == sweeps.get(name, name)


@pytest.mark.parametrize("name", OPTIONS["lr_schedule"])
def test_schedules_are_called_as_their_options(checked: Checked, name: str) -> None:
    assert checked(f"lr_schedule={name}").lr_schedule.name == name


# -- the reference rows ------------------------------------------------------------------------------------------------

CLONEOFSIMO = {
    "lora.sites": "attention+geglu",
    "lora.rank": 16,
    "lr_schedule.name": "constant",
    "lr_schedule.horizon": None,
    "train.lr": 5e-4,
    "train.text_encoder_lr": 6e-5,
    "train.grad_accum": 1,  # more of them are no accumulation in that script
    "train.remainder": "carry",
}
DIFFUSERS = {
    "lora.sites": "attention",
    "lora.rank": 16,
    "lr_schedule.name": "constant",
    "lr_schedule.horizon": 1000,
    "train.lr": 1e-4,
    "train.text_encoder_lr": None,
    "train.steps": 500,
    "train.grad_accum": 2,
    "train.remainder": "step",
    "prior.weight": 1.0,
    "prior.count": 200,
}
BOTH = {
    "model.path": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "model.resolution": 512,
    "dataset.name": "dog3",
    "dataset.class_noun": "dog",
    "dataset.live": True,
    "dataset.prompt": "a photo of {token} {class}",
    "prior.prompt": "a photo of {class}",
    "prior.steps": 50,
    "prior.guidance_scale": 7.5,
    "prior.sampler": None,
    "lora.alpha": None,
    "lora.text_encoder": True,
    "lora.text_encoder_rank": None,
    "lr_schedule.warmup_steps": 0,
    "lr_schedule.power": 1.0,
    "lr_schedule.lr_end": 1e-7,
    "train.batch_size": 1,
    "train.optimizer": "adamw",
    "train.beta1": 0.9,
    "train.beta2": 0.999,
    "train.eps": 1e-8,
    "train.weight_decay": 1e-2,
    "train.max_grad_norm": 1.0,
    "train.min_snr_gamma": None,
    "train.noise_offset": 0.0,
    "train.interpolation": "bilinear",
    "train.flip": False,
    "train.sample_latents": True,
    "sample.images_per_prompt": 4,
    "sample.resolution": 512,
    "sample.prompts": "auto",
    "evaluate.label": None,
    "evaluate.dino.name": "vit_small_patch16_224.dino",
    "evaluate.clip.name": "ViT-B-32-quickgelu",
    "evaluate.clip.weights": "openai",
    "seed": 42,
    "seeds": {"init": 42, "data": 42, "noise": 42, "prior": 42, "sample": 42},
}
# row -> what it says beyond the settings that its table shares, and its scores: PRES, DIV, DINO, CLIP-I, CLIP-T
ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "cloneofsimo/without_prior_300": ({"train.steps": 300, "prior.weight": 0.0}, ".3196 .5590 .3293 .7303 .2457"),
    "cloneofsimo/without_prior_800": ({"train.steps": 800, "prior.weight": 0.0}, ".3464 .5937 .3558 .7417 .2426"),
    "cloneofsimo/with_prior_2000": (
        {"train.steps": 2000, "prior.weight": 1.0, "prior.count": 50},
        ".1903 .5718 .2409 .7266 .2425",
    ),
    "diffusers/with_prior": ({}, ".2225 .5190 .5052 .7753 .2454"),
    "diffusers/without_prior": ({"prior.weight": 0.0}, ".5152 .5369 .5219 .7750 .2419"),
    "diffusers/polynomial": ({"lr_schedule.name": "polynomial"}, ".2064 .5647 .4024 .7358 .2400"),
    "diffusers/rank32": ({"lora.rank": 32}, ".1671 .4928 .4841 .7708 .2391"),
}


@pytest.mark.parametrize("row", ROWS)
def test_reference_rows_are_exactly_these(composed: Composed, row: str) -> None:
    shared = {"cloneofsimo": CLONEOFSIMO, "diffusers": DIFFUSERS}[row.partition("/")[0]]
    expected = {**BOTH, **shared, **ROWS[row][0]}
    cfg = composed(f"experiment=reference/{row}")
    check.check(cfg)
    assert {path: OmegaConf.select(cfg, path) for path in expected} == expected


@pytest.mark.parametrize("row", ROWS)
def test_reference_rows_tell_what_to_expect(row: str) -> None:
    comment = (CONF / "experiment" / "reference" / f"{row}.yaml").read_text(encoding="utf-8")
    assert re.findall(r"(?<!\d)\.\d{4}", comment) == ROWS[row][1].split()
    assert "Time: " in comment


def test_the_schedule_of_2023_ends_at_half(checked: Checked) -> None:
    cfg = checked("experiment=reference/diffusers/polynomial")
    last = lr_schedule.factor(cfg.train.steps, cfg.lr_schedule, steps=cfg.train.steps, peak_lr=cfg.train.lr)
    assert last == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("name", OPTIONS["train"])
def test_what_follows_a_script_on_accelerate_steps_as_it_does(checked: Checked, name: str) -> None:
    text = (CONF / "train" / f"{name}.yaml").read_text(encoding="utf-8")
    follows = re.search(r"script|train_\w+\.py of diffusers", text) is not None and name != "cloneofsimo"
    assert checked(f"train={name}", "lora.text_encoder=true").train.remainder == ("step" if follows else "carry")


# -- sweeps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["cloneofsimo", "diffusers"])
def test_a_table_is_a_sweep_over_its_rows(composed: Composed, table: str) -> None:
    node = composed(f"experiment=reference/{table}", return_hydra_config=True).hydra
    assert node.mode.name == "MULTIRUN"
    ((key, rows),) = node.sweeper.params.items()
    assert [f"{table}/{row}" for row in rows.split(",")] == [row for row in ROWS if row.startswith(table)]
    for row in rows.split(","):
        by_sweep = composed(f"experiment=reference/{table}", f"{key}={row}")
        assert by_sweep == composed(f"experiment=reference/{table}/{row}")


# -- options of one's own ----------------------------------------------------------------------------------------------


def test_a_folder_of_ones_own_adds_options(checked: Checked, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "ours.yaml").write_text("name: ours\npath: somewhere\nresolution: 256\n")
    (tmp_path / "experiment" / "ours").mkdir(parents=True)
    (tmp_path / "experiment" / "ours" / "first.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: ours\n  - _self_\nlora:\n  rank: 5\n"
    )
    cfg = checked("experiment=ours/first", f"hydra.searchpath=[file://{tmp_path}]")
    assert (cfg.model.name, cfg.sample.resolution, cfg.lora.rank) == ("ours", 256, 5)
    assert groups.options([CONF, tmp_path])["model"] == sorted([*OPTIONS["model"], "ours"])


# -- commands that people copy -----------------------------------------------------------------------------------------


def commands(text: str) -> list[str]:
    """The `dbexp` commands of a README or of a comment, without shell prompts and switches that run nothing."""
    lines = [line.removeprefix("#").strip() for line in text.splitlines()]
    return [line for line in lines if re.match(r"dbexp( -m)?( [^ ]+=|$)", line)]


README = Path(__file__).parents[1] / "README.md"
PAGES = [README, *sorted((README.parent / "docs").glob("*.md"))]
WRITTEN = {path: commands(path.read_text(encoding="utf-8")) for path in [*sorted(CONF.rglob("*.yaml")), *PAGES]}


@pytest.mark.parametrize("command", sorted({command for found in WRITTEN.values() for command in found}))
def test_written_commands_compose(checked: Checked, command: str) -> None:
    overrides = [word for word in shlex.split(command)[1:] if word != "-m"]
    checked(*(word.partition(",")[0] if "-m" in command else word for word in overrides))


def test_the_readme_shows_commands() -> None:
    assert len(WRITTEN[README]) > 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    places = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [place for place in places if not (page.parent / place).exists()] == []


def test_the_readme_leads_to_every_page() -> None:
    text = README.read_text(encoding="utf-8")
    assert [page.name for page in PAGES[1:] if f"(docs/{page.name})" not in text] == []


def test_the_checks_run_the_tests_as_the_readme_does() -> None:
    (shown,) = re.findall(r"\.venv/bin/(pytest.*)", README.read_text(encoding="utf-8"))
    last = (README.parent / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1]
    assert last.replace('"$venv/bin/pytest"', "pytest") == shown


@pytest.mark.parametrize("name", OPTIONS["experiment"])
def test_every_preset_opens_with_its_command(name: str) -> None:
    shown = WRITTEN[CONF / "experiment" / f"{name}.yaml"]
    assert shown
    assert all(f"experiment={name}" in command.split() for command in shown)
