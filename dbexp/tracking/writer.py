"""Writing records to a W&B run. Live and at a later upload it is the same code, so both give the same run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dbexp.runs import foreign
from dbexp.runs.folder import RunFolder
from dbexp.runs.record import Run
from dbexp.tracking import content
from dbexp.tracking.records import TIME, RunRecord
from dbexp.tracking.session import Attempts

if TYPE_CHECKING:
    import wandb

_ANSWER_SECONDS = 30


class Writer:
    """Writes to one W&B run; every part on its own, so that one that fails costs no other.

    W&B's step is the step of training, and the result comes one step after the last. So rows have the same step however
    often they are sent, and those that the server has are not sent again.

    Args:
        run: open.
        record: of the run.
        attempts: remembers what failed.

    Attributes:
        record: of the run.
        attempt: `with writer.attempt(what): ...` makes an exception a warning.
    """

    def __init__(self, run: wandb.Run, record: RunRecord, attempts: Attempts) -> None:
        self.record, self.attempt = record, attempts.attempt
        self._run = run
        self._next = int(run.starting_step)
        self._uploads: list[wandb.Artifact] = []

    def rows(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Rows of training, by step."""
        with self.attempt("part of the training history"):
            for row in rows:
                step = int(row["step"])
                if step < self._next:
                    continue
                named = {key if key == TIME else f"train/{key}": value for key, value in row.items()}
                self._run.log(named, step=step, commit=True)  # else a row waits for the next
                self._next = step + 1

    def log(self, values: Mapping[str, Any]) -> None:
        """What comes after training, all of it in one row."""
        self._run.log(dict(values), step=self._next)

    def summary(self, values: Mapping[str, Any]) -> None:
        """What lists of runs show."""
        self._run.summary.update(dict(values))

    def result(self, run: Run) -> None:
        """The evaluation, the pictures and the LoRA, as the record wants them.

        Args:
            run: evaluated. Its LoRA is not copied, so it must stay as it is until it is uploaded.
        """
        assert run.report is not None
        report, folder = run.report, RunFolder(run.folder)
        with self.attempt("the metrics"):
            numbers = content.scalars(report) | content.costs(run.costs)
            self.log(numbers)
            # said outright: of several results of one run, W&B by itself would keep the best and not the last
            self.summary({**numbers, "label": report.label})
        with self.attempt("the metric table"):
            self.log({"tables/metrics": content.metric_table(report, self.record.name)})
        if self.record.images:
            with self.attempt("the pictures"):
                self.log({"tables/prompts": content.prompt_table(report, folder.path)})
            if foreign.regular(folder.path, folder.relative(folder.contact_sheet)):
                with self.attempt("the contact sheet"):
                    sheet = content.picture(folder.contact_sheet, largest=None)
                    self.log({"pictures/contact_sheet": sheet})
        if self.record.artifact and not self._run.offline:  # W&B knows of no use offline; an upload makes it good
            with self.attempt("what the run was made from"):
                for source in content.sources(self.record.config, folder):
                    self._run.use_artifact(source)
        self.lora(run, self.record.config)

    def lora(self, run: Run, config: Mapping[str, Any], aliases: Sequence[str] = ()) -> None:
        """The LoRA of a run, if the record wants it. One that W&B has already is no new version, and gets the aliases.

        Args:
            run: evaluated.
            config: of it, by dotted name.
            aliases: beside W&B's own.
        """
        folder = RunFolder(run.folder)
        trained = config.get("lora.path") is None  # what somebody else made is not the run's to publish
        is_there = foreign.within(folder.path, folder.relative(folder.lora))
        if self.record.artifact and trained and run.report and is_there:
            with self.attempt("the LoRA"):
                artifact = content.lora_artifact(config, run.report, folder.lora)
                self._uploads.append(self._run.log_artifact(artifact, aliases=[*aliases] or None))

    def finish(self, exit_code: int, error: str | None) -> None:
        """End the run: 0 finished, 1 failed. Returns when everything has been sent."""
        if error is not None:
            with self.attempt("why the run failed"):
                self._run.summary["error"] = error
        with self.attempt("the end of the run"):
            self._run.finish(exit_code=exit_code)
            if not self._run.offline:
                for upload in self._uploads:
                    upload.wait(_ANSWER_SECONDS)  # it has been sent or it has failed; this asks which
