"""The evaluate stage: from pictures on disk to the metric table, every number with its interval and its reasons.

What is computed, and how every edge case is met, is fixed by metric_version 1 (`dbexp.evaluate.functional`). The stage
reads the saved files and nothing else, so a table can always be made again from disk.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from dbexp.config.schema import EvaluateConfig
from dbexp.core.cost import Meter
from dbexp.core.errors import ConfigError
from dbexp.core.rates import Rates, device_name
from dbexp.core.store import Store
from dbexp.evaluate import cached
from dbexp.evaluate.added import added
from dbexp.evaluate.backbones.base import Backbone, ImageEncoder, ImageTextEncoder, OnDevice, PairwiseDistance, absent
from dbexp.evaluate.backbones.deferred import open_backbone
from dbexp.evaluate.columns import in_order
from dbexp.evaluate.feature_cache import DiskCache, FeatureCache
from dbexp.evaluate.features import Distances, attempt, embed, embed_texts, read_files
from dbexp.evaluate.functional import Resampling, without_token
from dbexp.evaluate.metrics.base import Metric, Seen
from dbexp.evaluate.pictures import ImageFile, Pictures
from dbexp.evaluate.report import Report, summary
from dbexp.evaluate.score import Row, Scorer

__all__ = ["Backbones", "Pictures", "Report", "evaluate", "find_or_evaluate", "load_backbones", "summary"]

CPU = torch.device("cpu")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backbones:
    """The three networks behind the metrics, and metrics that the config adds."""

    dino: ImageEncoder
    clip: ImageTextEncoder
    lpips: PairwiseDistance
    more: tuple[Metric, ...] = ()

    @property
    def all(self) -> tuple[Backbone, ...]:
        """Every network."""
        return (self.dino, self.clip, self.lpips, *(metric.network for metric in self.more))

    def leave(self) -> None:
        """Free the device of all of them until something is computed: denoisers want its memory."""
        for network in self.all:
            if isinstance(network, OnDevice):
                network.leave()


_loaded: dict[str, Backbones] = {}


def absent_files(cfg: EvaluateConfig) -> list[str]:
    """A message for each file of weights that is named and not there: known without a network and before any is
    downloaded."""
    named = {
        "evaluate.dino.weights": cfg.dino.weights,
        "evaluate.lpips.trunk": cfg.lpips.trunk,
        "evaluate.lpips.heads": cfg.lpips.heads,
    }
    return [problem for field, path in named.items() if (problem := absent(path, field))]


def load_backbones(cfg: EvaluateConfig, device: torch.device, store: Store | None = None) -> Backbones:
    """The backbones of a config, loaded once per process and shared by all runs of a sweep.

    Args:
        cfg: which they are.
        device: where they compute.
        store: backbones that it knows are loaded when first used; None: all are loaded at once.

    Raises:
        ConfigError: with the problems of all backbones at once.
    """
    key = json.dumps([asdict(cfg.dino), asdict(cfg.clip), asdict(cfg.lpips), cfg.more, str(device)], sort_keys=True)
    if key not in _loaded:
        problems: list[str] = []
        networks = []
        for settings in (cfg.dino, cfg.clip, cfg.lpips):
            try:
                networks.append(open_backbone(settings, device, store))
            except ConfigError as error:
                problems.extend(error.problems)
        metrics = []
        for name, kind, chosen in added(cfg.more, problems):
            try:
                metrics.append(kind(name, chosen, kind.open_network(chosen, device, store)))
            except ConfigError as error:
                problems += [_placed(name, problem) for problem in error.problems]
        if problems:
            raise ConfigError(problems)
        _loaded.clear()  # a process that goes on to other backbones does not come back: free the memory
        dino, clip, lpips = networks
        _loaded[key] = Backbones(dino, clip, lpips, tuple(metrics))
        _loaded[key].leave()
    return _loaded[key]


def find_or_evaluate(
    pictures: Pictures,
    backbones: Backbones,
    cfg: EvaluateConfig,
    store: Store,
    device: torch.device = CPU,
) -> Report:
    """What `evaluate` gives, with its cost, from the store if the same pictures were evaluated before.

    Args:
        pictures, backbones, cfg: see `evaluate`.
        store: where it is looked up.
        device: whose memory counts.
    """
    networks = (backbones.dino, backbones.clip, backbones.lpips)
    with store.hold("evaluate", cached.inputs_of(pictures, networks, cfg, backbones.more)) as entry:
        if entry.finished:
            report = cached.read(entry.folder, pictures)
            for note in report.notes:
                log.warning(note)
            return report
        meter = Meter(device)
        try:
            report = evaluate(pictures, backbones, cfg, DiskCache(store.root / "features"))
        finally:
            backbones.leave()
        taken = meter.cost()
        images = len(pictures.class_images) + sum(map(len, pictures.samples.values()))
        if images:
            work = {**work_of(cfg), "device": device_name(device)}
            Rates(store.root).note(work, images, taken.seconds)
        report = replace(report, cost=taken.plain())
        if cached.is_sound(report):
            cached.write(entry.folder, report, pictures)
            entry.publish()
        return report


def work_of(cfg: EvaluateConfig) -> dict[str, object]:
    """The kind of work that an evaluation is, as `Rates` has it: seconds for each image of the run."""
    networks = [asdict(cfg.dino), asdict(cfg.clip), asdict(cfg.lpips), cfg.more]
    return {"work": "evaluate", "networks": json.loads(json.dumps(networks, default=str)), "resamples": cfg.resamples}


def evaluate(
    pictures: Pictures, backbones: Backbones, cfg: EvaluateConfig, cache: FeatureCache | None = None
) -> Report:
    """Compute every column of the metric table.

    A column that cannot be computed (no real images, a backbone out of memory) is NaN with its reason and costs no
    other column its value.

    Args:
        pictures: what to read.
        backbones: from `load_backbones`.
        cfg: batch size, intervals, tolerance of missing files, label.
        cache: where features are looked up and kept; null: computed anew.

    Raises:
        ConfigError: too many samples are missing, a sample is byte-identical to a real image, a file is damaged, or an
            embedding is zero or not finite; each message names the files.
    """
    how = Resampling(cfg.resamples, cfg.confidence, cfg.seed)
    real = _read_real(pictures.real)
    rows = _read_rows(pictures, real, cfg)
    run, base, oracle = rows
    files = [*real, *(file for row in rows for file in row.files())]
    prompts = {*pictures.samples, *(pictures.base_samples or {}), *(pictures.oracle_samples or {})}
    texts = sorted({*prompts, *(without_token(prompt, pictures.token) for prompt in prompts)})
    notes = _notes(files, texts, backbones.clip)
    plain = {prompt: without_token(prompt, pictures.token) for prompt in prompts}
    seen = Seen(real, files, plain, cfg.batch_size, cache)

    scorer = Scorer(
        token=pictures.token,
        groups=pictures.groups,
        real=real,
        dino=attempt("dino", lambda: embed(backbones.dino, files, cfg.batch_size, cache)),
        clip=attempt("clip", lambda: embed(backbones.clip, files, cfg.batch_size, cache)),
        texts=attempt("clip", lambda: embed_texts(backbones.clip, texts, cache)),
        lpips=Distances(backbones.lpips, cfg.batch_size, cache),
        how=how,
        more=[(metric, metric.look(seen)) for metric in backbones.more],
    )
    images = {row.name: scorer.images(row) for row in rows}
    scores = {row.name: scorer.prompts(row, images[row.name]) for row in rows}
    of_real = scorer.real_columns()
    of_run = scorer.columns(scores["run"]) | scorer.class_columns(run, base) | of_real | run.counts()
    table = {
        "run": {column: of_run[column] for column in in_order(of_run)},
        "real": {column.removesuffix("_real"): estimate for column, estimate in of_real.items()}
        | {"clip_t": scorer.real_prompt_fidelity(pictures.samples)}
        | scorer.added_of_real(),
    }
    if base.expected:
        table["base"] = scorer.columns(scores["base"]) | scorer.class_columns(base, None) | base.counts()
    if oracle.expected:
        table["oracle"] = scorer.columns(scores["oracle"]) | oracle.counts()
    groups = {
        group: scorer.columns([score for score in scores["run"] if score.group == group])
        for group in dict.fromkeys(score.group for score in scores["run"])
    }
    for note in notes:
        log.warning(note)
    return Report(
        label=_label(backbones, cfg),
        token=pictures.token,
        class_noun=pictures.class_noun,
        backbones={"dino": backbones.dino.id, "clip": backbones.clip.id, "lpips": backbones.lpips.id}
        | {metric.name: metric.network.id for metric in backbones.more},
        settings=asdict(how),
        rows=table,
        groups=groups,
        prompts=tuple(score for row in (run, base) for score in scores[row.name]),
        images=tuple(image for row in (run, base) for image in images[row.name]),
        copies=scorer.copies(images["run"]),
        copy_threshold=scorer.threshold,
        notes=tuple(notes),
        class_images=tuple(image for row in (run, base) for image in scorer.class_images(row)),
    )


def _placed(name: str, problem: str) -> str:
    """A message of a network with the name that its field has in the config."""
    place = f"evaluate.more.{name}."
    moved = problem.replace("evaluate.dino.", place).replace("evaluate.clip.", place)
    return moved if moved != problem else f"{place}{problem}"


def _label(backbones: Backbones, cfg: EvaluateConfig) -> str | None:
    """The label of the config, and a warning that no config can switch off."""
    random = any(backbone.random for backbone in backbones.all)
    if not random or (cfg.label and "random" in cfg.label):
        return cfg.label
    return f"{cfg.label}, random weights" if cfg.label else "random weights"


# --------------------------------------------------------------------------------------------------------- reading


def _read_real(paths: Sequence[Path]) -> list[ImageFile]:
    """R, in the order of their hashes, so that no result depends on the order in which they are listed."""
    read = read_files(paths)
    absent = [f"{path}: this real image does not exist" for path, file in zip(paths, read, strict=True) if file is None]
    if absent:
        raise ConfigError(absent)
    return sorted((file for file in read if file), key=lambda file: file.sha256)


def _read_rows(pictures: Pictures, real: Sequence[ImageFile], cfg: EvaluateConfig) -> tuple[Row, Row, Row]:
    problems: list[str] = []
    real_by_hash = {file.sha256: file.path for file in real}

    def read(role: str, paths: Sequence[Path]) -> list[ImageFile | None]:
        try:
            files = read_files(paths)
        except ConfigError as error:
            problems.extend(error.problems)
            return []
        absent = [path for path, file in zip(paths, files, strict=True) if file is None]
        if len(absent) > cfg.max_missing * len(paths) and not cfg.allow_partial:
            problems.append(
                f"{len(absent)} of {len(paths)} {role} are missing ({', '.join(map(str, absent[:3]))}"
                f"{', ...' if len(absent) > 3 else ''}), more than evaluate.max_missing={cfg.max_missing:g}; "
                "sample them, or pass evaluate.allow_partial=true"
            )
        problems.extend(
            f"{file.path}: this {role.rstrip('s')} is byte-identical to the real image {real_by_hash[file.sha256]}; "
            "a real image lies among the generated ones"
            for file in files
            if file and file.sha256 in real_by_hash
        )
        return files

    def row(name: str, samples: Mapping[str, Sequence[Path]], class_images: Sequence[Path]) -> Row:
        flat = iter(read(f"{name} samples", [path for paths in samples.values() for path in paths]))
        by_prompt = {prompt: [next(flat, None) for _ in paths] for prompt, paths in samples.items()}
        of_class = read(f"{name} class images", class_images)
        everything = [file for files in (*by_prompt.values(), of_class) for file in files]

        def usable(files: Sequence[ImageFile | None]) -> list[ImageFile | None]:
            return [None if file is None or file.black else file for file in files]

        return Row(
            name=name,
            samples={prompt: usable(files) for prompt, files in by_prompt.items()},
            class_images=usable(of_class),
            expected=len(everything),
            n_missing=sum(file is None for file in everything),
            n_blank=sum(file is not None and file.black for file in everything),
        )

    rows = (
        row("run", pictures.samples, pictures.class_images),
        row("base", pictures.base_samples or {}, pictures.class_images_base),
        row("oracle", pictures.oracle_samples or {}, ()),
    )
    if problems:
        raise ConfigError(problems)
    return rows


def _notes(files: Sequence[ImageFile], texts: Sequence[str], clip: ImageTextEncoder) -> list[str]:
    """What the user should know and may ignore, one sentence per matter."""
    notes = []
    oblong = [file.path for file in files if file.width != file.height]
    if oblong:
        notes.append(f"{len(oblong)} pictures are not square and are center-cropped, such as {oblong[0].name}")
    long = [text for text, cut in zip(texts, clip.truncated(texts), strict=True) if cut] if texts else []
    if long:
        notes.append(
            f"{len(long)} prompts exceed {clip.context_length} tokens and are cut for clip_t, such as {long[0]!r}"
        )
    return notes
