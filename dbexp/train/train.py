"""The train stage: hold the entries of the store, resume what was interrupted, run the pack, publish each result.

Training itself is one loop (`dbexp.train.loop`) over a pack of K >= 1 lanes on one frozen base. A lane's result is the
same alone or in a pack.
"""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dbexp.core.cost import Meter
from dbexp.core.device import largest_over_processes, processes, wait_for_everyone
from dbexp.core.errors import Interrupted
from dbexp.core.hashing import key_of
from dbexp.core.progress import progress
from dbexp.core.store import Entry, Store
from dbexp.models import Model
from dbexp.models.beside import adapted_base
from dbexp.models.compiled import compiled
from dbexp.train import adapter, graph, measured, packing, resume
from dbexp.train.data import Training, TrainingData, prepare
from dbexp.train.lane import Lane, Row, enter, open_slots, ranks_of
from dbexp.train.loop import Loop
from dbexp.train.result import (
    FinishLine,
    Trained,
    Trajectory,
    checkpoint,
    diverged,
    divergence,
    finish,
    inputs_of,
    is_main,
    result_of,
)
from dbexp.train.shares import Shares
from dbexp.train.signals import Signals

log = logging.getLogger(__name__)

OnRows = Callable[[int, Sequence[Row]], None]
"""Called with (number of the training, new history rows) whenever losses have come from the device."""


def train(
    trainings: Sequence[Training], model: Model, store: Store, on_rows: OnRows | None = None, *, keep: bool = False
) -> list[Trained | Exception]:
    """Train a pack, or find its results in the store.

    Args:
        trainings: agree in what `_agreement` names. Each has a slot of its own, unless it shares the trajectory of
            another.
        model: the frozen base.
        on_rows: told of losses as they come.
        keep: leave the state of all lanes at their last step, from which longer trainings of theirs then go on.

    Returns:
        For each training its result, or `TrainingDiverged`; one that diverged before is not trained again.

    Raises:
        ValueError: they can't train together.
        Interrupted: SIGINT or SIGTERM came; every lane was checkpointed first.
    """
    agreement = _agreement(trainings[0])
    if any(_agreement(training) != agreement for training in trainings):
        raise ValueError("the runs of a pack must agree in " + ", ".join(agreement))
    keys = [inputs_of(training, model) for training in trainings]
    first: dict[str, int] = {}
    twins = [first.setdefault(key_of(key), number) for number, key in enumerate(keys)]
    with contextlib.ExitStack() as holds:
        # in the order of their paths, so that two sweeps that want the same entries never wait for each other
        order = sorted(first.values(), key=lambda number: store.path("train", keys[number]))
        entries = {number: holds.enter_context(_hold(store, keys[number])) for number in order}
        lines = [FinishLine(n, trainings[n], entries[n]) for n in sorted(entries) if not entries[n].finished]
        results: dict[int, Trained | Exception] = {}
        results |= {line.number: error for line in lines if (error := divergence(line.entry.folder))}
        lines = [line for line in lines if line.number not in results]
        if lines:
            on_rows = on_rows or (lambda number, rows: None)
            results |= _train_pack(_trajectories(lines, keys), model, store, on_rows, keep)
        for number, entry in entries.items():
            missing = RuntimeError("training did not end")
            results.setdefault(number, result_of(entry.path) if entry.finished else missing)
    return [results[number] for number in twins]


def _agreement(training: Training) -> dict[str, Any]:
    """What trainings on one base must have in common to be a pack."""
    return {
        "model.resolution": training.resolution,
        "model.training_lora": None if training.base_lora is None else training.base_lora.sha256,
        "lora.sites": training.lora.sites,
        "train.gradient_checkpointing": training.cfg.gradient_checkpointing,
        "train.compile": training.cfg.compile,
        "train.graphs": training.cfg.graphs,
    }


@contextlib.contextmanager
def _hold(store: Store, inputs: dict[str, Any]) -> Iterator[Entry]:
    """Hold an entry. Of several processes that train it together the main one holds it for all."""
    if is_main():
        with store.hold("train", inputs) as entry:
            wait_for_everyone()
            yield entry
    else:
        wait_for_everyone()
        yield store.peek("train", inputs)


def _trajectories(lines: Sequence[FinishLine], keys: Sequence[Mapping[str, Any]]) -> list[Trajectory]:
    """Gather finish lines into lanes.

    The longest first: lanes that end leave no gap between those that go on, which therefore share the same products, in
    the same order, whether the pack goes on at once or is resumed without those that ended.
    """
    shared: dict[str, list[FinishLine]] = {}
    for line in sorted(lines, key=lambda line: line.steps):
        shared.setdefault(packing.trajectory(keys[line.number]), []).append(line)
    trajectories = [Trajectory(key, tuple(members)) for key, members in shared.items()]
    return sorted(trajectories, key=lambda trajectory: (-trajectory.passes, trajectory.key))


# -- a pack -----------------------------------------------------------------------------------------------------------


def _train_pack(
    trajectories: Sequence[Trajectory], model: Model, store: Store, on_rows: OnRows, keep: bool
) -> dict[int, Trained | Exception]:
    """Train a pack, lane k in slot k, from where it was interrupted if it was."""
    data = prepare([trajectory.training for trajectory in trajectories], model, store)
    state, states = resume.resume(store, _state(trajectories, model, store, keep))
    try:
        base_lora, mode = trajectories[0].training.base_lora, trajectories[0].training.cfg.compile
        with (
            open_slots(data, model, state.ranks) as slots,
            adapted_base(model, None if base_lora is None else base_lora.path),
            compiled(model, "train.compile", mode),
            Signals() as signals,
        ):
            lanes = [
                _begin(slots, slot, data[slot], model, trajectory, states.get(trajectory.key))
                for slot, trajectory in enumerate(trajectories)
            ]

            def save() -> None:
                if is_main():
                    state.save(store, [lane.state() for lane in lanes])

            pack = _Pack(trajectories, lanes, model, on_rows, save, keep)
            if is_main():
                state.begin(store)
            total, before = sum(lane.steps for lane in lanes), sum(lane.step for lane in lanes)
            with progress("train", total, done=before) as bar:
                pack.tell_history()
                graphs = graph.of_pack(lanes, model)
                steady = mode != "none" or graphs is not None
                loop = Loop(lanes, slots, model, bar, pack.tell, steady=steady, graphs=graphs)
                with contextlib.closing(loop), measured.noting(lanes, model, store):
                    pack.run(loop, signals)
            if is_main():
                state.end(store)
            if signals.received is not None:
                raise Interrupted(signals.received, "training is done; the same command goes on after it")
    finally:
        if is_main():
            state.give_up(store)
        model.enable_gradient_checkpointing(False)
    return pack.results


def _state(trajectories: Sequence[Trajectory], model: Model, store: Store, keep: bool) -> resume.PackState:
    """A pack as it is when it begins."""
    entries = tuple(
        tuple(line.entry.path.relative_to(store.root).as_posix() for line in trajectory.lines)
        for trajectory in trajectories
    )
    ranks = ranks_of([trajectory.training for trajectory in trajectories], model)
    return resume.PackState(tuple(trajectory.key for trajectory in trajectories), entries, ranks, keep)


def _begin(
    slots: adapter.AdapterSlots,
    slot: int,
    data: TrainingData,
    model: Model,
    trajectory: Trajectory,
    state: Mapping[str, Any] | None,
) -> Lane:
    """The lane of a slot, at its last state if there is one that its nearest finish line can be reached from."""
    lane = enter(slots, slot, data, model)
    if state is not None and state["micro"] <= lane.accumulation.passes(trajectory.lines[0].steps):
        lane.load_state(state)
        log.info("train: going on from step %d of %d", lane.step, lane.steps)
    counts = adapter.parameter_count(lane.adapter).items()
    log.info("train: %s", " and ".join(f"{count:,} parameters of the {part}" for part, count in counts))
    return lane


class _Pack:
    """Lanes on their way: steps until every one is at its last finish line, and publishes a run at each.

    Args:
        trajectories, lanes: one for each slot.
        on_rows: told of the losses of every run.
        save: keeps the state of all lanes.
        keep: whether that is of use after the last of them has ended.

    Attributes:
        results: by number of the training.
    """

    def __init__(
        self,
        trajectories: Sequence[Trajectory],
        lanes: Sequence[Lane],
        model: Model,
        on_rows: OnRows,
        save: Callable[[], None],
        keep: bool,
    ) -> None:
        self.results: dict[int, Trained | Exception] = {}
        self._trajectories, self._lanes, self._model = trajectories, lanes, model
        self._on_rows, self._save, self._keep = on_rows, save, keep
        self._due = [_due_steps(lane, trajectory) for lane, trajectory in zip(lanes, trajectories, strict=True)]
        self._meter, self._first_steps = Meter(model.device), [lane.step for lane in lanes]
        self._shares = Shares([len(t.training.prompts) * t.training.cfg.batch_size for t in trajectories])
        self._alone = processes()[1] == 1

    def tell(self, slot: int, rows: Sequence[Row]) -> None:
        """Hand new rows of a lane to whoever follows one of its runs."""
        for line in self._trajectories[slot].lines:
            self._on_rows(line.number, [row for row in rows if row["step"] <= line.steps])

    def tell_history(self) -> None:
        """The same for lanes that go on: whoever is told gets every row, and in order."""
        for slot, lane in enumerate(self._lanes):
            if lane.history:
                self.tell(slot, lane.history)

    def run(self, loop: Loop, signals: Signals) -> None:
        """Step until all lanes have ended.

        Raises:
            Interrupted: a signal came; the state of all lanes is kept.
        """
        stop = 0
        try:
            while True:
                self._cross_finish_lines(loop)
                if stop or not any(lane.running for lane in self._lanes):
                    break
                losses_came = loop.microbatch()
                # several processes must stop at one step; they agree on it where they wait for the device anyway
                if self._alone or losses_came:
                    stop = largest_over_processes(signals.received or 0, self._model.device)
            loop.flush()
        except KeyboardInterrupt:
            # a second Ctrl-C: the user will not wait for a checkpoint; the last one stays
            raise Interrupted(
                signal.SIGINT, "stopped at once; the last checkpoint is kept, and the same command goes on from it"
            ) from None
        if stop and any(lane.running for lane in self._lanes):
            if not self._alone:
                loop.to_step_boundary()
            self._save()
            reached = ", ".join(dict.fromkeys(f"{lane.step} of {lane.steps}" for lane in self._lanes))
            raise Interrupted(stop, f"training stopped at step {reached}; the same command goes on from there")
        for lane, trajectory in zip(self._lanes, self._trajectories, strict=True):
            if lane.diverged_at is not None:
                missed = [line for line in trajectory.lines if line.number not in self.results]
                self.results |= {line.number: diverged(lane, line) for line in missed}

    def _cross_finish_lines(self, loop: Loop) -> None:
        """Write what is due at this step: checkpoints, the state of all lanes, and runs whose steps are done."""
        if not self._arrived():
            return
        if not self._alone:  # half accumulated gradients are not the same in every process
            loop.to_step_boundary()
        loop.flush()
        for slot in self._arrived():
            lane = self._lanes[slot]
            self._due[slot].discard(lane.step)
            if lane.step in _checkpoint_steps(lane):
                checkpoint(lane, self._trajectories[slot].lines, self._model)
        ending = [
            (slot, line)
            for slot, lane in enumerate(self._lanes)
            for line in self._trajectories[slot].lines
            if line.number not in self.results and line.steps == lane.step and lane.between_steps
        ]
        # before any run is published: those that go on must find all lanes as they are now, not as they were
        # before, or their batches would be composed otherwise than without an interruption
        left = sum(len(trajectory.lines) for trajectory in self._trajectories) - len(self.results)
        if left > 1 or not ending or self._keep:
            self._save()  # all but the last run of all, whose end needs no state
        self._shares.charge([lane.running for lane in self._lanes])
        for slot, line in ending:
            cost = {
                **self._meter.cost().plain(),
                "seconds_cover_steps": self._lanes[slot].step - self._first_steps[slot],
                "seconds_share": round(self._shares.seconds[slot], 3),
                "lanes": len(self._lanes),
            }
            self.results[line.number] = finish(self._lanes[slot], line, self._model, cost)

    def _arrived(self) -> list[int]:
        """Slots of the lanes that have something to write now."""
        return [slot for slot, lane in enumerate(self._lanes) if lane.step in self._due[slot] and lane.between_steps]


def _due_steps(lane: Lane, trajectory: Trajectory) -> set[int]:
    """Steps at which a lane has something to write, once each. It may begin at a finish line: a state was saved there,
    and the process killed before the run was published."""
    checkpoints = {step for step in _checkpoint_steps(lane) if step > lane.step}
    return checkpoints | {line.steps for line in trajectory.lines if line.steps >= lane.step}


def _checkpoint_steps(lane: Lane) -> set[int]:
    every = lane.cfg.checkpoint_every
    return set(range(every, lane.steps, every)) if every else set()
