"""What keeps a checkpoint from being used, all of it, before any weight is read or anything is made."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dbexp.config.families import FAMILIES
from dbexp.config.schema import ModelConfig
from dbexp.core.errors import ConfigError, Problems, listed
from dbexp.models import VAE, files
from dbexp.models.checkpoint import Checkpoint
from dbexp.models.files import Weights
from dbexp.models.known import file_of, unknown

log = logging.getLogger(__name__)

_TASKS = ("", "Img2Img", "Inpaint")
"""What stands before the last word in the names of a family's pipelines."""
_LATENTS = ("latent_channels", "scaling_factor", "shift_factor", "latents_mean", "latents_std")
"""What tells one VAE's latents from another's."""
_mentioned: set[str] = set()


def family_of(pipeline: object) -> str | None:
    """The family that has a pipeline class of diffusers; None: no family here."""
    names = {
        family.pipeline.removesuffix("Pipeline") + task + "Pipeline": name
        for name, family in FAMILIES.items()
        for task in _TASKS
    }
    return names.get(str(pipeline))


def refuse_other_family(kind: type[Checkpoint], cfg: ModelConfig, folder: Path) -> None:
    """Raises:
    ConfigError: the pipeline folder says that it is of another family than the config.
    """
    index = files.settings(folder / "model_index.json") or {}
    other = family_of(index.get("_class_name"))
    if other is not None and FAMILIES[other] is not kind.family:
        raise ConfigError(
            f"model.path={cfg.path}: not a checkpoint of {kind.family.title} (its pipeline is {index['_class_name']}); "
            f"model.family={cfg.family} covers only those, model.family={other} those of {FAMILIES[other].title}"
        )


@dataclass(frozen=True)
class Places:
    """Where the parts of a checkpoint are.

    Attributes:
        folder: of the pipeline.
        vae: of the VAE.
    """

    cfg: ModelConfig
    folder: Path
    vae: Path

    def of(self, part: str) -> Path:
        """The folder of a part."""
        return self.vae if part == VAE else self.folder / part

    def field(self, part: str) -> str:
        """The setting that a part comes from."""
        return f"model.vae={self.cfg.vae}" if part == VAE and self.cfg.vae else f"model.path={self.cfg.path}"


def weights_of(kind: type[Checkpoint], places: Places) -> dict[str, Weights]:
    """Part -> the files that its weights are read from.

    A part without the variant that is asked for takes its plain files, which is said once.

    Raises:
        ConfigError: with everything that is wrong with the files of a checkpoint, or with what they say.
    """
    problems, libraries = Problems(), {part: name.split(".")[0] for part, name in kind.classes.items()}
    found = {part: files.weights(places.of(part), library, places.cfg.variant) for part, library in libraries.items()}
    weights = {part: each for part, each in found.items() if each is not None}
    lacking = [part for part in found if part not in weights]
    variants = {part: files.variants(places.of(part), library) for part, library in libraries.items()}
    _require_variant(problems, places, weights, lacking, variants)
    for part, each in weights.items():
        problems.messages += [f"{places.field(part)}: {problem}" for problem in each.problems()]
    for name in kind.layout:
        if name.startswith("tokenizer"):
            wrong = files.tokenizer_problems(places.folder / name, chats=kind.chats)
            problems.messages += [f"{places.field(name)}: {problem}" for problem in wrong]
    problems.messages += _settings_problems(kind, places)
    problems.raise_if_any()
    _mention_plain(places.cfg, weights)
    return weights


def _require_variant(
    problems: Problems,
    places: Places,
    weights: Mapping[str, Weights],
    lacking: list[str],
    variants: Mapping[str, list[str | None]],
) -> None:
    variant = places.cfg.variant
    there = sorted({name for names in variants.values() for name in names if name})
    if variant and all(each.variant is None for each in weights.values()):
        others = f"it has {listed(there)}, and" if there else "give"
        problems.messages.append(
            f"model.variant={variant}: {places.folder} has no such weights; {others} null for the plain ones"
        )
    groups: dict[tuple[str, ...], list[str]] = {}
    for part in lacking:
        groups.setdefault(tuple(name for name in variants[part] if name), []).append(part)
    for names, parts in groups.items():
        verb = "has" if len(parts) == 1 else "have"
        if not names:
            where = listed([str(places.of(part)) for part in parts])
            problems.messages.append(f"{places.field(parts[0])}: {where} {verb} no weights")
            continue
        problems.messages.append(
            f"model.variant={variant or 'null'}: {listed(parts)} of {places.folder} {verb} only {listed(names)} "
            f"weights; give model.variant={names[0]}"
        )


def _mention_plain(cfg: ModelConfig, weights: Mapping[str, Weights]) -> None:
    """Say which parts take plain files in place of a variant."""
    plain = [part for part, each in weights.items() if cfg.variant and each.variant is None]
    if not plain:
        return
    sentence = (
        f"model.variant={cfg.variant}: {listed(plain)} of {cfg.path} {'has' if len(plain) == 1 else 'have'} no such "
        "weights; the plain ones are taken"
    )
    if sentence not in _mentioned:
        log.warning("%s", sentence)
        _mentioned.add(sentence)


def _settings_problems(kind: type[Checkpoint], places: Places) -> list[str]:
    """What files of settings say that the family does not know, or that does not go together."""
    paths = {part: places.of(part) / file_of(part) for part in (*kind.classes, "scheduler")}
    settings = {part: values for part, path in paths.items() if (values := files.settings(path)) is not None}
    problems = [
        f"{places.field(part)}: {path} is missing or damaged" for part, path in paths.items() if part not in settings
    ]
    wrong = unknown(settings, kind.known)
    if not wrong and len(settings) == len(paths):
        settings["model_index"] = files.settings(places.folder / "model_index.json") or {}
        wrong = list(kind.disagreements(settings))
    problems += [f"{places.field(part)}: {paths[part]} {problem}" for part, problem in wrong]
    own = files.settings(places.folder / VAE / file_of(VAE))
    if places.cfg.vae and own is not None and VAE in settings:
        defaults = kind.vae_defaults
        for field in _LATENTS:
            theirs, ours = (each.get(field, defaults.get(field)) for each in (settings[VAE], own))
            if theirs != ours:
                problems.append(
                    f"model.vae={places.cfg.vae}: its {field} is {theirs}, that of the checkpoint's own VAE {ours}: "
                    "the denoiser would not understand its latents"
                )
    return problems
