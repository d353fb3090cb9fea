"""Where everything lies in the folder of a run: the only file that knows these names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dbexp.train import layout


class _At:
    """A place in the folder of a run, by its path there."""

    def __init__(self, *parts: str) -> None:
        self._path = Path(*parts)

    def __get__(self, folder: RunFolder, owner: type[RunFolder]) -> Path:
        return folder.path / self._path


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run: one sub-folder per stage, and result.json, which is written last.

    Attributes:
        path: of the folder.
    """

    path: Path

    hydra = _At(".hydra")
    composed = _At(".hydra", "config.yaml")
    """The config without its interpolations, before it was checked."""
    overrides = _At(".hydra", "overrides.yaml")

    dataset = _At("dataset")
    """The subject's images, by number."""
    prior = _At("prior")
    """The class images that training saw."""

    train = _At("train")
    lora = _At("train", layout.LORA)
    history = _At("train", layout.HISTORY)
    checkpoints = _At("train", layout.CHECKPOINTS)

    sample = _At("sample")
    base_samples = _At("sample", "base")
    """The same prompts and seeds drawn by the base model."""
    class_samples = _At("sample", "class")
    base_class_samples = _At("sample", "class_base")
    contact_sheet = _At("sample", "contact_sheet.png")

    metrics = _At("evaluate", "metrics.json")
    """The report, and everything that its numbers depend on."""
    tracking = _At("tracking")
    """What `dbexp.tracking.records` writes, and W&B."""

    result = _At("result.json")
    """How the run ended; there is none while it runs, nor after it was killed."""
    traceback = _At("traceback.log")
    """Where an error came from that nobody expected."""

    sweep = _At("multirun.yaml")
    """What Hydra writes into the folder of a sweep, and not into that of a run."""

    @property
    def stages(self) -> tuple[Path, ...]:
        """Folders of the run that hold no other run."""
        return (self.hydra, self.dataset, self.prior, self.train, self.sample, self.metrics.parent, self.tracking)

    def relative(self, path: Path) -> str:
        """A path in the folder as it is in records, which may be moved with it."""
        return path.relative_to(self.path).as_posix()

    def subject_image(self, number: int, original: Path) -> Path:
        """Where one of the subject's images is linked.

        Args:
            number: in the subject.
            original: the user's file.
        """
        return self.dataset / f"{number:02d}{original.suffix.lower()}"
