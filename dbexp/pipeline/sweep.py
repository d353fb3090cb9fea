"""Training the runs of a sweep in packs, before each of them runs.

Nothing here decides a result. Training leaves its LoRAs in the store, where each run, started on its own as always,
finds them; a run that is started without its sweep trains alone and gets the same.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from dbexp import models, tracking
from dbexp.core.device import is_out_of_memory, release_memory
from dbexp.core.errors import ConfigError, Interrupted, first_line
from dbexp.core.store import Store
from dbexp.models import Model
from dbexp.pipeline import prepare, together, view
from dbexp.pipeline.plan import PlannedRun
from dbexp.runs.outcome import Outcome
from dbexp.train import memory, packing
from dbexp.train.data import Training
from dbexp.train.train import train

log = logging.getLogger(__name__)

_most_lanes: dict[str, int] = {}
"""What the runs of a pack have in common -> most lanes that memory sufficed for, once it did not for more."""


@dataclass(frozen=True)
class _Member:
    """A run of a pack and what it trains on."""

    run: PlannedRun
    training: Training


def train_pack(runs: Sequence[PlannedRun], size: int | None = None, *, keep: bool = False) -> None:
    """Train runs together. What fails here fails again, with its own message, when it runs: it is only logged.

    When memory does not suffice, half as many go on together, and this process remembers it for later packs.

    Args:
        runs: of the pack.
        size: most lanes at once, as the user gave it; None: as many as the memory of the device has room for.
        keep: see `train`. Without it, images of these runs are drawn too, where that is faster together.

    Raises:
        Interrupted: a signal came; everything is saved.
    """
    store = prepare.open_store(runs[0].config)
    model = models.load(runs[0].config.model, store)
    lanes: dict[str, list[_Member]] = {}
    for run in runs:
        try:
            training = prepare.make_training(run.config, model, store)
        except Interrupted:
            raise
        except Exception as error:  # a fault in one run must not cost the others theirs
            log.warning("%s: left out of its pack: %s", run.title, first_line(error, typed=True))
        else:
            lanes.setdefault(run.trajectory, []).append(_Member(run, training))
    if not lanes:
        return
    started = time.perf_counter()
    _train_lanes([*lanes.values()], size, model, store, keep)
    log.info("training took %.1f s", time.perf_counter() - started)
    if not keep:
        together.sample_together([run.config for run in runs], store)


def _train_lanes(lanes: Sequence[Sequence[_Member]], size: int | None, model: Model, store: Store, keep: bool) -> None:
    """Train lanes, as many at a time as there is room for."""
    settings = json.dumps(packing.shared(lanes[0][0].run.config), sort_keys=True)
    waiting = deque(lanes)
    room = len(lanes) if size is None else size
    if settings in _most_lanes:
        room = min(room, _most_lanes[settings])
        log.info("pack size: at most %d lanes, for more did not fit in memory before", _most_lanes[settings])
    elif size is None and len(lanes) > 1:
        room = memory.room([lane[0].training for lane in lanes], model, store)
    while waiting:
        together = -(-len(waiting) // -(-len(waiting) // room))  # shares of like size
        share = [waiting.popleft() for _ in range(together)]
        if _train([member for lane in share for member in lane], model, store, keep):
            continue
        if together == 1:
            log.warning("%s does not fit in memory even alone; its run will say so", share[0][0].run.title)
            continue
        room = _most_lanes[settings] = together // 2
        log.warning("%d lanes do not fit in memory together; from now on at most %d at a time", together, room)
        waiting.extendleft(reversed(share))


def _train(members: Sequence[_Member], model: Model, store: Store, keep: bool) -> bool:
    """Train runs together; whether memory sufficed."""
    display, numbers = view.current(), [member.run.number for member in members]
    log.info("training jobs %s together", ", ".join(map(str, numbers)))
    display.trains({member.run.number: member.run.config.train.steps for member in members})
    out_of_memory, results = False, []
    with ExitStack() as stack:
        trackers = [_track(member.run, stack) for member in members]

        def on_rows(number: int, rows: Sequence[Mapping[str, float]]) -> None:
            display.losses(numbers[number], rows)
            trackers[number].train(rows)

        try:
            results = train([member.training for member in members], model, store, on_rows, keep=keep)
        except Interrupted:
            raise
        except Exception as error:
            out_of_memory = is_out_of_memory(error)
            if not out_of_memory:
                log.warning("the pack failed (%s); each of its jobs trains alone", first_line(error, typed=True))
    if out_of_memory:  # what the exception held in memory is free by now
        release_memory()
    for member, result in zip(members, results, strict=False):  # none, where the pack failed as a whole
        if isinstance(result, Exception):
            log.warning("%s: %s", member.run.title, result)
    return not out_of_memory


def _track(run: PlannedRun, stack: ExitStack) -> tracking.Tracker:
    """Where the losses of a run go while its pack trains: to W&B, if that is online and somebody may be looking.

    Everything else the run itself sends, which goes on with the same W&B run.
    """
    if run.folder is None or run.config.tracking.mode != "online":
        return tracking.Disabled()
    named = Outcome.of(run.config, run.folder, run.overrides)
    try:
        tracker = tracking.start(
            named.config, folder=run.folder, name=named.name, group=run.sweep, overrides=run.overrides
        )
        return stack.enter_context(tracker)
    except ConfigError as error:  # a machine without the login, say: the run will tell
        log.warning("%s: no live losses: %s", run.title, error)
        return tracking.Disabled()
