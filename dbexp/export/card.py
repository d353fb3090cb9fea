"""The model card: what a stranger on the hub needs to judge a LoRA and to use it. Pure: text from what is known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import PurePath

import yaml
from huggingface_hub import EvalResult, ModelCardData

from dbexp.config.families import FAMILIES
from dbexp.config.template import fill
from dbexp.config.values import plain
from dbexp.core.provenance import public
from dbexp.evaluate.columns import PAPER, REFERENCES, column_of, heading
from dbexp.evaluate.functional import Estimate
from dbexp.export.compare import LEAST_PSNR, Comparison, decibel
from dbexp.export.formats import FORMATS
from dbexp.runs.names import matters
from dbexp.runs.record import TrainedRun


@dataclass(frozen=True)
class Facts:
    """What the card tells of."""

    run: TrainedRun
    name: str
    """Of the model."""
    base: str | None
    """Hub id of the base model; None: it is not on the hub."""
    licence: str | None
    """Of the base model; None: unknown."""
    files: Mapping[str, str]
    """Format -> name of its file."""
    comparison: Comparison | None
    """None: no image was compared."""
    images: Sequence[tuple[str, str]] = ()
    """(prompt, path of a sample in the folder)"""
    grid: str | None = None
    """Path of the contact sheet in the folder."""


def card(facts: Facts) -> str:
    """README.md of a folder for the hub."""
    parts = [f"---\n{_front_matter(facts)}\n---\n", f"# {facts.name}\n", _introduction(facts)]
    if facts.grid:
        parts.append(f"![the base model beside this LoRA, prompt by prompt]({facts.grid})\n")
    parts += [_how_to_load(facts), _metrics(facts), _compared(facts), _licence(facts), _settings(facts)]
    return "\n".join(part for part in parts if part)


def _front_matter(facts: Facts) -> str:
    """What the hub reads."""
    dataset, report = facts.run.config.dataset, facts.run.report
    results = [
        EvalResult(
            task_type="text-to-image",
            dataset_type=dataset.source,
            dataset_name=dataset.name,
            metric_type=column,
            metric_name=column_of(column).title,
            metric_value=round(report.rows["run"][column].value, 4),
        )
        for column in PAPER
        # numbers with a label are not comparable with anybody's, so the hub's tables do not get them
        if report and not report.label and not math.isnan(report.rows["run"].get(column, _NOTHING).value)
    ]
    licence, _, name = (facts.licence or "other").partition(":")
    data = ModelCardData(
        license=licence,
        license_name=name or None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        base_model=facts.base,
        tags=["text-to-image", "diffusers", "lora", "dreambooth", *FAMILIES[facts.run.config.model.family].tags],
        model_name=facts.name if results else None,
        eval_results=results or None,
        instance_prompt=fill(dataset.prompt, dataset),
        widget=[{"text": prompt, "output": {"url": path}} for prompt, path in facts.images] or None,
    )
    return data.to_yaml()


_NOTHING = Estimate(math.nan, math.nan, math.nan, 0)


def _introduction(facts: Facts) -> str:
    config = facts.run.config
    subject = f"{config.dataset.token} {config.dataset.class_noun}"
    prior = "with prior preservation" if config.prior.weight > 0 else "without prior preservation"
    other = config.model.sample_path and public(config.model.sample_path)
    drawn = f" Its pictures were drawn with `{other}`." if other else ""
    return (
        f"A DreamBooth LoRA of rank {config.lora.rank} for `{facts.base or config.model.name}`, trained in "
        f"{config.train.steps} steps {prior} on pictures of one {config.dataset.class_noun}. `{subject}` in a prompt "
        f"means this {config.dataset.class_noun}.{drawn}\n"
    )


def _how_to_load(facts: Facts) -> str:
    dataset, base = facts.run.config.dataset, facts.base or "FOLDER_OF_THE_BASE_MODEL"
    subject, family = f"{dataset.token} {dataset.class_noun}", FAMILIES[facts.run.config.model.family]
    usages = [
        FORMATS[kind].usage.format(
            base=base, subject=subject, name=PurePath(file).stem, pipeline=family.pipeline, dtype=family.dtype
        )
        for kind, file in facts.files.items()
    ]
    return "\n".join(["## How to load it\n", *usages])


def _metrics(facts: Facts) -> str:
    report = facts.run.report
    if report is None:
        return "## Metrics\n\nThe run was not evaluated.\n"
    columns = [column for column in PAPER if column in report.rows["run"]]
    names = {"run": "this LoRA", **REFERENCES}
    rows = [
        f"| {name} | " + " | ".join(_cell(report.rows[row].get(column)) for column in columns) + " |"
        for row, name in names.items()
        if row in report.rows
    ]
    samples = sum(scores.row == "run" for scores in report.images)
    basis = f" over {samples} samples of {len({s.prompt for s in report.prompts})} prompts" if samples else ""
    confidence = report.settings.get("confidence")
    intervals = f", {confidence:.0%} bootstrap intervals over prompts" if confidence else ""
    backbones = "; ".join(f"{name}: {public(identity)}" for name, identity in report.backbones.items())
    caveat = f"\n**{report.label}**. These numbers compare only among themselves.\n" if report.label else ""
    return "\n".join(
        [
            "## Metrics\n",
            "| | " + " | ".join(heading(column) for column in columns) + " |",
            "|---|" + "---|" * len(columns),
            *rows,
            caveat,
            f"Means{basis}{intervals}. DINO and CLIP-I: likeness to the subject's photographs; CLIP-T: fidelity to the "
            "prompt; PRES: how much the class drifts towards the subject; DIV: variety of samples. They compare only "
            f"with numbers of the same backbones ({backbones}).\n",
        ]
    )


def _cell(estimate: Estimate | None) -> str:
    if estimate is None or math.isnan(estimate.value):
        return ""
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} ({estimate.low:.3f}…{estimate.high:.3f})"


def _compared(facts: Facts) -> str:
    if facts.comparison is None:
        return ""
    values = ", ".join(f"`{name}` {decibel(value)}" for name, value in facts.comparison.psnr.items())
    return (
        f"On export each file was loaded into a stock diffusers pipeline and drew the run's pictures: {values} PSNR "
        f"(without the LoRA: {decibel(facts.comparison.without)}; {LEAST_PSNR:.0f} dB are required).\n"
    )


def _licence(facts: Facts) -> str:
    base = f"`{facts.base or facts.run.config.model.name}`"
    name = (facts.licence or "").removeprefix("other:")
    start = f"The base model {base} is under `{name}`" if name else f"Look up the licence of {base}"
    return f"## Licence\n\n{start}; what is derived from it, such as this LoRA, follows its terms.\n"


def _settings(facts: Facts) -> str:
    settings = {name: value for name, value in plain(facts.run.config).items() if matters(name)}
    text = yaml.safe_dump(public(settings), sort_keys=False, allow_unicode=True).replace("```", "'''")
    return (
        f"## How it was made\n\nBy dbexp {version('dbexp')}. All settings:\n\n"
        f"<details>\n<summary>config</summary>\n\n```yaml\n{text}```\n\n</details>\n"
    )
