"""A saved view of a W&B project in which dbexp's runs are easy to compare: `python -m dbexp.tracking.workspace`.

Runs are sorted by the objective, best first, with the table's columns pinned; panels are grouped from the decision to
the details. Building the view needs no network, saving it does. Needs `pip install '.[workspace]'`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dbexp.config import explain, fields, words
from dbexp.config.fields import choice, comma_list
from dbexp.core.errors import ConfigError, needs
from dbexp.evaluate.columns import COLUMNS, PAPER, RECOMMEND, column_of, heading

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

USAGE = """usage: python -m dbexp.tracking.workspace entity=USER_OR_TEAM [name=value ...]

Save a view of a W&B project that sorts dbexp's runs by objective and shows them side by side.
"""


@dataclass
class Settings:
    """What the view shows."""

    entity: str = "???"
    """W&B user or team."""
    project: str = "dbexp"
    """W&B project."""
    objective: str = choice("dino", (*COLUMNS, RECOMMEND))
    """What sorts the runs: a column of the metric table, or recommend."""
    parameters: list[str] = comma_list(["lora.rank", "train.lr", "train.steps", "lr_schedule.name", "prior.weight"])
    """Axes of the parallel coordinates, before the columns of the metric table."""
    name: str = "dbexp"
    """Name of the view."""


def workspace(settings: Settings) -> Workspace:
    """The view, not saved yet.

    Raises:
        ConfigError: wandb-workspaces is not installed, or the objective is no column.
    """
    problems = fields.problems(settings)
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError:
        raise ConfigError(f"a saved view {needs('wandb-workspaces', 'workspace')}") from None
    if problems:
        raise ConfigError(problems)
    lower = column_of(settings.objective).better == "lower"
    bars = [wr.BarPlot(title=heading(column), metrics=[f"metrics/{column}"]) for column in PAPER]
    front = wr.ScatterPlot(
        title="subject fidelity against prompt fidelity, PRES as third axis",
        x=wr.SummaryMetric("metrics/clip_t"),
        y=wr.SummaryMetric("metrics/dino"),
        z=wr.SummaryMetric("metrics/pres"),
    )
    axes = [_axis(name) for name in settings.parameters]
    axes += [
        wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(f"metrics/{column}"), display_name=heading(column))
        for column in PAPER
    ]
    return ws.Workspace(
        entity=settings.entity,
        project=settings.project,
        name=settings.name,
        sections=[
            ws.Section(name="decision", is_open=True, panels=[front, wr.ParallelCoordinatesPlot(columns=axes), *bars]),
            ws.Section(
                name="pictures",
                is_open=True,
                panels=[wr.MediaBrowser(media_keys=["pictures/contact_sheet", "pictures/contact_sheets"])],
            ),
            ws.Section(
                name="training",
                panels=[wr.LinePlot(title=name, x="train/step", y=[f"train/{name}"]) for name in ("loss", "lr")],
            ),
        ],
        runset_settings=ws.RunsetSettings(
            order=[ws.Ordering(ws.Summary(f"metrics/{settings.objective}"), ascending=lower)],
            pinned_columns=[f"summary:metrics/{column}" for column in PAPER],
        ),
    )


def _axis(name: str) -> Any:
    """An axis for a parameter.

    The library takes the dots of a name for nesting; dbexp's names are flat, and W&B finds those under name.value. Only
    its private interface can say so, as was checked with wandb-workspaces 0.4.13.
    """
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces.reports.v2 import internal

    class Flat(wr.ParallelCoordinatesPlotColumn):  # type: ignore[misc]  # Any to the type checker
        def _to_model(self) -> Any:
            return internal.Column(accessor=f"config:{name}.value", display_name=name)

    return Flat(wr.Config(name), display_name=name)


def main() -> None:
    """Save the view and print its address."""
    with explain.user_errors("dbexp.tracking.workspace", "the view may not be saved; the same command saves it"):
        settings = words.parse(Settings, sys.argv[1:], USAGE)
        view = workspace(settings)
        try:
            view.save()
        except Exception as error:  # whatever the server or the way to it has to say
            raise ConfigError(f"{settings.entity}/{settings.project}: the view was not saved: {error}") from error
        print(f"{column_of(settings.objective).title} sorts {view.url}")


if __name__ == "__main__":
    main()
