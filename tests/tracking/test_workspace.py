"""The saved view of a project: built without a network, and what a mistake says."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from dbexp.core.errors import ConfigError
from dbexp.tracking import workspace
from dbexp.tracking.workspace import Settings

# wandb-workspaces writes its classes in an older style of pydantic, which warns of it when they are imported
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def view(**settings: Any) -> dict[str, object]:
    """What would be sent to the server, as text keys and plain values."""
    model = workspace.workspace(Settings(entity="me", **settings))._to_model()
    return dict(model.model_dump(mode="json", by_alias=True))


@pytest.mark.parametrize(("objective", "ascending"), [("dino", False), ("pres", True)])
def test_runs_are_sorted_best_first(objective: str, ascending: bool) -> None:
    (order,) = workspace.workspace(Settings(entity="me", objective=objective)).runset_settings.order
    assert (order.item.name, order.ascending) == (f"metrics/{objective}", ascending)


def test_parallel_coordinates_find_the_flat_names_of_parameters() -> None:
    text = str(view())
    assert "'config:lora.rank.value'" in text
    assert "'summary:metrics/pres'" in text


def test_an_objective_that_is_no_column_is_told() -> None:
    with pytest.raises(ConfigError, match=r"objective=beauty: choose one of dino"):
        workspace.workspace(Settings(entity="me", objective="beauty"))


def test_the_library_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[workspace\]'"):
        workspace.workspace(Settings(entity="me"))


def test_a_view_that_cannot_be_saved_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Refused:
        def save(self) -> None:
            raise PermissionError("not your project")

    monkeypatch.setattr(workspace, "workspace", lambda settings: Refused())
    monkeypatch.setattr(sys, "argv", ["workspace", "entity=me", "project=theirs"])
    with pytest.raises(SystemExit, match="me/theirs: the view was not saved: not your project"):
        workspace.main()
    assert "Traceback" not in capsys.readouterr().err
