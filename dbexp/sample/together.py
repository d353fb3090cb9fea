"""Images of several runs in one batch, each row with the LoRA of its run beside the weights.

A set alone fills a card unless it has very few images: one of one prompt, say.
Sets that are drawn together are found by each run as if it had drawn them; their pixels differ from those that a merged
LoRA gives by rounding, in 16 bits by that of the merged weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dbexp.core.cost import Meter
from dbexp.core.progress import progress
from dbexp.core.store import Store
from dbexp.models import Conditioning, Model
from dbexp.models.beside import Rows, side_by_side
from dbexp.models.lora_file import read
from dbexp.sample import sets
from dbexp.sample.draw import Drawing, Engine
from dbexp.sample.shots import Sampling, Shot, shots
from dbexp.sample.text import Texts, encode

OVERHEAD = 1.16
"""Time of a step with LoRAs beside the weights, to that with one merged into them."""
_LEAST_MERGED, _LEAST_BESIDE = 1.3, 2.7
"""Images whose time a step takes at least, for the host takes as long to launch it.

All three are of Stable Diffusion 1.5 at 512 pixels with LoRAs of rank 16, on an H100: 743 operations a step and 35.2 ms
for 8 images, beside the weights 1,511 and 40.7 ms; counted on a pretended card, by its roofline, not measured. Slower
cards wait less for the host, so that together pays there even more rarely.
"""


def pays(counts: Sequence[int], batch: int) -> bool:
    """Whether drawing sets together is faster than one after the other.

    Args:
        counts: images of each set.
        batch: most at once.
    """
    together = _length(sum(counts), batch, OVERHEAD, _LEAST_BESIDE)
    return len(counts) > 1 and together < sum(_length(count, batch, 1.0, _LEAST_MERGED) for count in counts)


def _length(images: int, batch: int, each: float, least: float) -> float:
    """How long batches take, in the time of an image."""
    whole, rest = divmod(images, batch)
    return whole * max(each * batch, least) + (max(each * rest, least) if rest else 0)


@dataclass(frozen=True)
class LaneSet:
    """A set of images and what it is drawn with."""

    sampling: Sampling
    lora: Path
    lora_scale: float


@dataclass(frozen=True)
class LaneShot(Shot):
    """An image of one of several sets; its path is absolute."""

    lane: int = 0
    """Which."""
    more: Mapping[str, object] = field(default_factory=dict)
    """What its file says besides."""

    @property
    def metadata(self) -> dict[str, object]:
        return {**super().metadata, **self.more}


def draw_together(
    stage: str,
    wanted: Sequence[LaneSet],
    model: Model,
    store: Store,
    *,
    batch_size: int,
    grows: bool,
    compile: str = "none",
) -> None:
    """Draw what is missing of several sets in common batches, and publish each.

    Args:
        stage: see `draw_set`.
        wanted: sets that agree in all but prompts, stream, seed and number of images; each once.
        model: the base model.
        store: where the entries are.
        batch_size, grows, compile: see `Drawing`.

    Raises:
        ConfigError: see `Engine.draw`.
    """
    inputs = [sets.inputs_of(each.sampling, model, store, each.lora, each.lora_scale) for each in wanted]
    drawing = sets.drawing_of(wanted[0].sampling, batch_size, grows, compile)
    engine = _LanesEngine(model, drawing, wanted)
    with ExitStack() as holds:
        # in the order of their paths, so that two processes that want the same never wait for each other
        order = sorted(range(len(wanted)), key=lambda lane: store.path(stage, inputs[lane]))
        entries = {lane: holds.enter_context(store.hold(stage, inputs[lane])) for lane in order}
        entries = {lane: entry for lane, entry in sorted(entries.items()) if not entry.finished}
        missing: dict[int, list[LaneShot]] = {}
        for lane, entry in entries.items():
            sampling = wanted[lane].sampling
            every = shots(sampling)
            sets.remove_strays(entry.folder, every)
            more = sets.metadata_of(sampling, model, inputs[lane], wanted[lane].lora_scale, engine.sampler)
            missing[lane] = [
                LaneShot(shot.prompt, shot.seed, str(entry.folder / shot.path), shot.k, lane, more)
                for batch in engine.missing(every, entry.folder, more)
                for shot in batch
            ]
        every_shot = [shot for members in missing.values() for shot in members]
        meter = Meter(model.device)
        with progress(f"{stage}, {len(entries)} sets together", len(every_shot)) as bar:
            engine.draw(engine.cut(every_shot), Path(), {}, bar, f"{stage}.batch_size")
        cost = meter.cost()
        for lane, entry in entries.items():
            share = replace(cost, seconds=cost.seconds * len(missing[lane]) / max(1, len(every_shot)))
            sets.note(entry.folder, missing[lane], wanted[lane].sampling, model, store, share, compile)
            entry.publish()


class _LanesEngine(Engine):
    """Draws rows of several LoRAs."""

    def __init__(self, model: Model, drawing: Drawing, wanted: Sequence[LaneSet]) -> None:
        super().__init__(model, drawing)
        self._wanted = wanted
        self._rows: Rows | None = None

    @contextmanager
    def adapted(self) -> Any:
        """With the LoRAs beside the weights."""
        with side_by_side(self.model, [(each.lora, each.lora_scale) for each in self._wanted]) as self._rows:
            yield

    def begin(self, batch: Sequence[Shot]) -> None:
        """Tell the layers which row is whose."""
        assert self._rows is not None
        self._rows.set([_lane(shot) for shot in batch], self.model.device)

    def encode(self, prompts: Sequence[str]) -> Texts:
        """Each prompt as its LoRA has it read; once for all whose LoRAs leave the encoders alone."""
        drawing = self.drawing
        negative = drawing.negative_prompt if self.model.guided(drawing.guidance_scale) else None
        plain: Texts | None = None
        lanes = []
        for each in self._wanted:
            if set(self.model.family.encoders).isdisjoint(read(each.lora, self.model).alphas):
                plain = plain or encode(self.model, prompts, negative)
                lanes.append(plain)
            else:
                lanes.append(encode(self.model, each.sampling.prompts, negative, each.lora, each.lora_scale))
        return _LaneTexts(self.model, {}, negative, tuple(lanes))


@dataclass(frozen=True)
class _LaneTexts(Texts):
    lanes: tuple[Texts, ...] = ()

    def of(self, shots: Sequence[Shot]) -> tuple[Conditioning, Conditioning | None]:
        texts = [self.lanes[_lane(shot)] for shot in shots]
        rows = self._on_device(
            [(text.encoded[shot.prompt, False], [1]) for text, shot in zip(texts, shots, strict=True)]
        )
        if self.negative is None:
            return rows, None
        return rows, self._on_device([(text.encoded[self.negative, True], [1]) for text in texts])


def _lane(shot: Shot) -> int:
    assert isinstance(shot, LaneShot)
    return shot.lane
