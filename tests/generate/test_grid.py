"""Rows, columns, sizes and settings of a grid, without any model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dbexp.core.errors import ConfigError
from dbexp.generate import grid
from dbexp.generate.settings import GenerateConfig
from dbexp.runs.record import TrainedRun
from tests import run_folders


def settings_of(**fields: Any) -> GenerateConfig:
    return GenerateConfig(**{"run": ["run"], "prompt": ["a {token} {class}"], **fields})


def run(name: str = "0", **dataset: Any) -> TrainedRun:
    config = run_folders.config()
    config = replace(config, dataset=replace(config.dataset, **dataset))
    return TrainedRun(Path("sweep") / name, f"rank={name}", config, Path("lora"))


class TestColumns:
    def test_runs_and_scales_against_prompts(self) -> None:
        settings = settings_of(prompt=["a {token} {class}", "a red {class}"], lora_scale=[0.5, 1], images=2, base=True)
        columns = grid.columns(settings, [run("0"), run("1")])
        assert [(column.heading, column.run.folder.name, column.scale) for column in columns] == [
            ("base model", "0", None),
            ("rank=0, scale 0.5", "0", 0.5),
            ("rank=0, scale 1", "0", 1),
            ("rank=1, scale 0.5", "1", 0.5),
            ("rank=1, scale 1", "1", 1),
        ]
        for column in columns:
            assert [(row, shot.prompt, shot.seed) for row, shots in column.rows.items() for shot in shots] == [
                ("a sks dog", "a sks dog", 42),
                ("a sks dog", "a sks dog", 43),
                ("a red dog", "a red dog", 42),
                ("a red dog", "a red dog", 43),
            ]
        paths = [shot.path for column in columns for shot in column.shots]
        assert len(set(paths)) == 20
        assert paths[6] == "01-rank-0-scale-0-5/01-a-red-dog/42.png"

    def test_a_single_run_is_named_by_its_scale(self) -> None:
        assert [column.heading for column in grid.columns(settings_of(), [run()])] == ["scale 1"]
        assert [column.heading for column in grid.columns(settings_of(), [run(), run("1")])] == ["rank=0", "rank=1"]
        assert len(grid.columns(settings_of(lora_scale=[0.5, 0.5]), [run()])) == 1

    def test_two_subjects_share_rows_by_template(self) -> None:
        runs = [run("0"), run("1", token="xyz", class_noun="cat")]
        columns = grid.columns(settings_of(base=True), runs)
        assert {row for column in columns for row in column.rows} == {"a {token} {class}"}
        assert [column.heading for column in columns[:2]] == ["base model of rank=0", "base model of rank=1"]
        assert [column.shots[0].prompt for column in columns] == ["a sks dog", "a xyz cat"] * 2

    def test_the_papers_lists(self) -> None:
        (live,) = grid.columns(settings_of(prompt=[], prompts="auto"), [run()])
        assert len(live.shots) == 25
        assert any("firefighter" in shot.prompt for shot in live.shots)
        settings = settings_of(prompt=["a {token} {class} in the jungle"], prompts="auto")
        two = grid.columns(settings, [run(), run(live=False)])
        assert [len(column.shots) for column in two] == [25, 25]
        rows = {row for column in two for row in column.rows}
        assert len(rows) == 25 + 10

    def test_a_file_of_prompts(self, tmp_path: Path) -> None:
        (tmp_path / "list.txt").write_text("# mine\na {token}\n\na {class}, asleep\n")
        (column,) = grid.columns(settings_of(prompt=[], prompts=str(tmp_path / "list.txt")), [run()])
        assert [shot.prompt for shot in column.shots] == ["a sks", "a dog, asleep"]

    @pytest.mark.parametrize(
        ("fields", "says"),
        [
            ({"prompt": ["a {subject}"]}, "prompt, entry 1: 'a {subject}' has {subject}: only"),
            ({"prompt": ["a {token.real}"]}, "prompt, entry 1: 'a {token.real}' has {token.real}: only"),
            ({"prompt": ["a {token"]}, "prompt, entry 1: 'a {token' has a brace too many or too few"),
            ({"prompt": [""]}, "prompt, entry 1: '' must be a text"),
            ({"prompts": "nowhere.txt"}, "prompts=nowhere.txt: there is no such text file"),
        ],
    )
    def test_bad_prompts(self, fields: dict[str, Any], says: str) -> None:
        with pytest.raises(ConfigError) as caught:
            grid.columns(settings_of(**fields), [run()])
        assert str(caught.value).startswith(says)

    def test_another_base(self) -> None:
        settings = settings_of(model="weights/inpaint.safetensors", precision="bf16", device="cpu")
        (column,) = grid.columns(settings, [run()])
        model = run().config.model
        assert column.model == replace(model, name="inpaint", path="weights/inpaint.safetensors", precision="bf16")


@pytest.mark.parametrize(
    ("width", "height", "init", "expected"),
    [
        (None, None, None, (512, 512)),
        (768, None, None, (768, 512)),
        (64, 32, (999, 1), (64, 32)),
        (None, None, (1200, 800), (768, 512)),
        (None, None, (3000, 4000), (512, 680)),
        (256, None, (1200, 800), (256, 168)),
        (None, 256, (1200, 800), (384, 256)),
        (None, None, (10000, 10), (512000, 512)),
    ],
)
def test_size(width: int | None, height: int | None, init: tuple[int, int] | None, expected: tuple[int, int]) -> None:
    assert grid.size(width, height, 512, init) == expected


class TestDrawing:
    @pytest.fixture
    def pictures(self, tmp_path: Path) -> dict[str, str]:
        """A garden, 60 x 40, and masks for it."""
        Image.new("RGB", (60, 40), "green").save(tmp_path / "garden.jpg")
        mask = Image.new("L", (60, 40))
        mask.paste(255, (30, 0, 60, 40))
        mask.save(tmp_path / "right.png")
        Image.new("L", (60, 40)).save(tmp_path / "nothing.png")
        Image.new("L", (40, 60), 255).save(tmp_path / "turned.png")
        return {path.stem: str(path) for path in tmp_path.iterdir()}

    def test_as_the_run_was_sampled(self) -> None:
        drawing = grid.drawing(settings_of(), run())
        assert (drawing.task, drawing.steps, drawing.guidance_scale, drawing.sampler) == ("text", 3, 3.0, None)
        assert (drawing.width, drawing.height, drawing.batch_size, drawing.negative_prompt) == (32, 32, 4, "")

    def test_as_asked_for(self) -> None:
        settings = settings_of(steps=7, guidance_scale=0, sampler="ddim", negative_prompt="fog", width=64, batch_size=1)
        drawing = grid.drawing(settings, run())
        assert (drawing.steps, drawing.guidance_scale, drawing.sampler) == (7, 0, "ddim")
        assert drawing.negative_prompt == "fog"
        assert (drawing.width, drawing.height, drawing.batch_size) == (64, 32, 1)

    def test_a_picture_and_a_mask(self, pictures: dict[str, str]) -> None:
        settings = settings_of(init_image=pictures["garden"], mask=pictures["right"])
        drawing = grid.drawing(settings, run())
        assert drawing.task == "inpaint"
        assert drawing.init is not None and drawing.mask is not None
        assert drawing.init.size == drawing.mask.size == (drawing.width, drawing.height) == (48, 32)
        assert set(np.unique(np.asarray(drawing.mask)[:, :20])) == {0}
        assert set(np.unique(np.asarray(drawing.mask)[:, 28:])) == {255}
        assert grid.sources(settings).keys() == {"init_image", "mask"}

    def test_the_task_follows_from_the_images_given(self, pictures: dict[str, str]) -> None:
        garden, mask = pictures["garden"], pictures["right"]
        tasks = [settings_of(), settings_of(init_image=garden), settings_of(init_image=garden, mask=mask)]
        drawings = [grid.drawing(settings, run()) for settings in tasks]
        assert [drawing.task for drawing in drawings] == ["text", "image", "inpaint"]
        assert [drawing.strength for drawing in drawings[1:]] == [0.75, 1.0]
        assert grid.drawing(settings_of(init_image=garden, strength=0.5), run()).strength == 0.5

    @pytest.mark.parametrize(
        ("mask", "fields", "says"),
        [
            ("nothing", {}, "is black all over; paint white what is to be drawn anew"),
            ("turned", {}, "has 40 x 60 pixels, init_image 60 x 40; they must be of one size"),
            ("right", {"strength": 0.1}, "strength=0.1: leaves none of 3 sampling steps; give at least 0.33"),
        ],
    )
    def test_what_does_not_go_together(
        self, pictures: dict[str, str], mask: str, fields: dict[str, Any], says: str
    ) -> None:
        with pytest.raises(ConfigError) as caught:
            grid.drawing(settings_of(init_image=pictures["garden"], mask=pictures[mask], **fields), run())
        assert says in str(caught.value)

    def test_an_unreadable_picture(self) -> None:
        with pytest.raises(ConfigError, match=r"nowhere\.jpg: there is no such file"):
            grid.drawing(settings_of(init_image="nowhere.jpg"), run())


class TestModels:
    """What the base model of a run cannot do is said before any weight is loaded."""

    def columns(self, family: str = "flux2_klein") -> tuple[grid.GridColumn, ...]:
        other = run()
        config = replace(other.config, model=replace(other.config.model, family=family))
        return grid.columns(settings_of(base=True), [run(), replace(other, config=config)])

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            (
                {"init": Image.new("RGB", (32, 32))},
                "init_image without mask: model=tiny of the family flux2_klein cannot draw so; models of sd",
            ),
            ({"sampler": "ddim"}, "sampler=ddim: model=tiny of the family flux2_klein has euler, unipc"),
            ({"width": 40}, "width=40: must be a multiple of 16 for model=tiny of the family flux2_klein"),
        ],
    )
    def test_refused(self, changes: dict[str, Any], says: str) -> None:
        drawing = replace(grid.drawing(settings_of(), run()), **changes)
        grid.check_models(self.columns("sd"), drawing)
        with pytest.raises(ConfigError) as caught:
            grid.check_models(self.columns(), drawing)
        (problem,) = caught.value.problems
        assert problem.startswith(says)

    def test_nothing_to_steer_away_from(self) -> None:
        drawing = replace(grid.drawing(settings_of(), run()), negative_prompt="blurry")
        with pytest.raises(ConfigError, match="negative_prompt=blurry: model=tiny of the family flux steers away from"):
            grid.check_models(self.columns("flux"), drawing)

    def test_sizes_that_nobody_asked_for_fit(self, tmp_path: Path) -> None:
        Image.new("RGB", (60, 40), "green").save(tmp_path / "garden.png")
        Image.new("L", (60, 40), 255).save(tmp_path / "all.png")
        images = {"init_image": str(tmp_path / "garden.png"), "mask": str(tmp_path / "all.png"), "width": 64}
        columns = self.columns()
        drawing = grid.drawing(settings_of(**images), columns[-1].run)
        assert (drawing.width, drawing.height) == (64, 48)
        grid.check_models(columns, drawing)
