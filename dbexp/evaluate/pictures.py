"""Everything that an evaluation reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Pictures:
    """Everything that `evaluate` reads: paths of PNG or JPEG files."""

    real: tuple[Path, ...]
    """R: photographs of the subject."""
    samples: Mapping[str, Sequence[Path]]
    """G: prompt, token filled in -> K paths in the order of their seeds; files may be missing, and are counted."""
    base_samples: Mapping[str, Sequence[Path]] | None
    """The same prompts and seeds with the adapter off; null: no base row."""
    class_images: tuple[Path, ...]
    """C: pictures of the class, adapter on."""
    class_images_base: tuple[Path, ...]
    """B: the same seeds, adapter off."""
    token: str
    class_noun: str
    groups: Mapping[str, str]
    """Prompt -> recontextualisation, accessory, property or other; a prompt without entry is other."""
    oracle_samples: Mapping[str, Sequence[Path]] | None = None
    """The true subject in the same prompts, where a drawn world has it; null: no oracle row."""

    def paths(self) -> tuple[Path, ...]:
        """All of them, in a fixed order."""
        by_prompt = (self.samples, self.base_samples or {}, self.oracle_samples or {})
        of_prompts = (path for samples in by_prompt for paths in samples.values() for path in paths)
        return (*self.real, *of_prompts, *self.class_images, *self.class_images_base)
