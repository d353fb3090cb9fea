"""Subject fidelity without the background: DINO against the real images of which only the subject is left.

Photographs of a subject share places, and a sample that repeats the place has a high DINO without the subject. Here
what a mask leaves out of a photograph is the grey that the network's normalisation makes zero. Samples stay whole.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dbexp.config.schema import DinoConfig
from dbexp.evaluate.columns import Column
from dbexp.evaluate.metrics.base import Metric, Scores, Seen, ToReal

if TYPE_CHECKING:
    import torch

    from dbexp.core.store import Store
    from dbexp.evaluate.pictures import ImageFile

_KINDS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass
class MaskedConfig(DinoConfig):
    """DINO, and where the masks are."""

    masks: str | None = None
    """Folder with a mask per photograph, called as the photograph whatever its ending: white is the subject."""


class Masked(Metric):
    """Mean cosine of samples to masked real images."""

    columns: ClassVar[Mapping[str, Column]] = {
        "dino_masked": Column(
            "DINO masked",
            "higher",
            -1,
            1,
            "Subject fidelity: mean DINO cosine of samples and subjects cut out.",
        )
    }
    Settings = MaskedConfig

    @classmethod
    def open_network(cls, settings: MaskedConfig, device: torch.device, store: Store | None) -> Any:
        from dataclasses import fields

        from dbexp.core.errors import ConfigError
        from dbexp.evaluate.backbones.deferred import open_backbone

        if settings.masks is None or not Path(settings.masks).expanduser().is_dir():
            raise ConfigError(f"masks={settings.masks}: give the folder of the masks, one per photograph")
        return open_backbone(
            DinoConfig(**{field.name: getattr(settings, field.name) for field in fields(DinoConfig)}), device, store
        )

    def depends_on(self, real: Sequence[Path]) -> list[Any]:
        """The bytes of the masks."""
        from dbexp.core.hashing import file_hash

        masks = [self._mask(path) for path in real]
        return [None if mask is None else file_hash(mask) for mask in masks]

    def look(self, seen: Seen) -> Scores:
        from dbexp.evaluate.features import Space, attempt, embed

        lacking = [file.path.name for file in seen.real if self._mask(file.path) is None]
        if lacking:
            reason = f"no mask of {', '.join(lacking[:3])} in {self.settings.masks}"
            return ToReal(Space(failure=reason), seen.real, ("dino_masked",))
        with tempfile.TemporaryDirectory() as folder:
            real = [self._cut(file, Path(folder)) for file in seen.real]
            files = [*seen.files, *real]
            space = attempt(self.name, lambda: embed(self.network, files, seen.batch_size, seen.cache))
        return ToReal(space, real, ("dino_masked",))

    def _mask(self, path: Path) -> Path | None:
        folder = Path(self.settings.masks).expanduser()
        return next((file for end in _KINDS if (file := folder / f"{path.stem}{end}").is_file()), None)

    def _cut(self, file: ImageFile, folder: Path) -> ImageFile:
        """The subject on grey, as a file."""
        from PIL import Image

        from dbexp.core.images import read_rgb
        from dbexp.evaluate.pictures import inspect

        mask = self._mask(file.path)
        assert mask is not None
        image = read_rgb(file.path)
        grey = Image.new("RGB", image.size, tuple(round(255 * level) for level in self.settings.mean))
        where = read_rgb(mask).convert("L").resize(image.size, Image.Resampling.BILINEAR)
        path = folder / f"{file.sha256}.png"
        Image.composite(image, grey, where).save(path)
        return inspect(path)


METRIC = Masked
