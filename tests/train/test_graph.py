"""Steps that are recorded: what is launched again does all that changes from step to step, and nothing is left behind.

No card is needed. What a CUDA graph would record is written down operation by operation, with the tensors that it reads
and writes, and done again with these: no line of Python runs again, and a number that was baked in stays what it was.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dbexp.core.store import Store
from dbexp.train import graph, memory
from dbexp.train.batch import Batch
from dbexp.train.data import Training, prepare
from dbexp.train.graph import Graphs, Results
from dbexp.train.lane import Row, enter, open_slots
from dbexp.train.loop import Loop
from tests import builders

CPU = torch.device("cpu")


class Tape(TorchDispatchMode):
    """Operations below autograd, backward passes included, that can be done again on the same memory."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, out in self.operations:
            if is_view(func):
                continue  # it is of memory that is written anew
            for old, new in zip(tensors([out]), tensors([func(*args, **kwargs)]), strict=True):
                if old is not new:
                    old.detach().copy_(new)

    def outside(self) -> set[int]:
        """Addresses that were read or written, and are not its own."""
        made: set[int] = set()
        read: set[int] = set()
        for _, args, kwargs, out in self.operations:
            read |= {address(tensor) for tensor in tensors([args, list(kwargs.values())])} - made
            made |= {address(tensor) for tensor in tensors([out])} - read
        return read


def is_view(func: Any) -> bool:
    alias = func._schema.returns[0].alias_info if func._schema.returns else None
    return alias is not None and not alias.is_write


def tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors(value)


def address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@dataclass
class Recorder:
    """Stands in for a card's: see `graph.Record`."""

    tapes: list[Tape] = field(default_factory=list)

    def __call__(self, work: Callable[[], Results]) -> Callable[[], Results]:
        tape = Tape()
        self.tapes.append(tape)
        with tape:
            results = work()
        pending = [results]  # recording did the work, which on a card it does not

        def replay() -> Results:
            if pending:
                return pending.pop()
            tape.replay()
            return results

        return replay


@dataclass
class Trained:
    """What came of a pack."""

    weights: list[dict[str, Tensor]]
    histories: list[list[Row]]
    shapes: list[int]
    """Rows of each microbatch."""
    graphs: Graphs | None
    recorder: Recorder


def trained(
    trainings: Sequence[Training], folder: Path, *, steady: bool, recorded: bool = False, precision: str = "fp32"
) -> Trained:
    model, recorder = builders.model(precision=precision), Recorder()
    data = prepare(trainings, model, Store(folder))
    graphs = Graphs(CPU, recorder, warm=1) if recorded else None
    shapes: list[int] = []
    with open_slots(data, model) as slots:
        lanes = [enter(slots, slot, entry, model) for slot, entry in enumerate(data)]
        loop = Loop(lanes, slots, model, memory._Silent(), lambda *_: None, steady=steady, graphs=graphs)
        with closing(loop):
            while any(lane.running for lane in lanes):
                loop.microbatch()
                shapes.append(slots.rows[model.family.denoiser].total)
            loop.flush()
            weights = [lane.adapter.state() for lane in lanes]
    return Trained(weights, [lane.history for lane in lanes], shapes, graphs, recorder)


def assert_identical(one: Trained, other: Trained) -> None:
    """Bit for bit the same weights, losses and norms."""
    for ours, theirs in zip(one.weights, other.weights, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [[{**row} for row in history] for history in one.histories] == other.histories


LANES = [
    builders.training(steps=9, min_snr_gamma=5.0, schedule={"name": "cosine", "warmup_steps": 2}),
    builders.training(steps=9, seed=2, weight=0.0, adapters={"rank": 8, "alpha": 2.0}, lr=5e-4, batch_size=2),
    builders.training(steps=5, seed=3, grad_accum=2, weight=0.5, schedule={"name": "linear"}),
    builders.training(steps=3, seed=4, max_grad_norm=1e-3, weight_decay=0.1),
]
"""They end after 9, 9, 10 and 3 microbatches; one has steps of two."""


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained(LANES, tmp_path_factory.mktemp("steady"), steady=True)


class TestSteady:
    def test_the_batch_keeps_its_shape_while_lanes_end(self, steady: Trained, tmp_path: Path) -> None:
        """Eight rows until one lane alone is left, where without seats one goes with each."""
        assert steady.shapes == [8] * 9 + [2]
        assert trained(LANES, tmp_path, steady=False).shapes == [8] * 3 + [6] * 6 + [2]

    def test_lanes_equal_solo_runs(self, steady: Trained, tmp_path: Path) -> None:
        for number, training in enumerate(LANES):
            alone = trained([training], tmp_path, steady=False)
            assert len(steady.histories[number]) == training.cfg.steps
            for ours, theirs in zip(steady.histories[number], alone.histories[0], strict=True):
                assert ours == pytest.approx(theirs, rel=1e-5)
            for name, weight in alone.weights[0].items():
                torch.testing.assert_close(steady.weights[number][name], weight, rtol=0, atol=1e-5)

    def test_a_lane_that_diverged_keeps_its_seat(self, tmp_path: Path) -> None:
        """Its rows are no numbers any more, and nobody beside it sees any of them."""
        lost = builders.training(steps=9, seed=5, lr=1e14, log_every=1)
        with_it = trained([LANES[0], LANES[1], lost], tmp_path, steady=True)
        assert len(with_it.histories[2]) < 9 and set(with_it.shapes) == {6, 4} and with_it.shapes[-1] == 4
        alone = trained([LANES[0]], tmp_path, steady=False)
        for name, weight in alone.weights[0].items():
            torch.testing.assert_close(with_it.weights[0][name], weight, rtol=0, atol=1e-5)


class TestRecorded:
    @pytest.mark.parametrize("precision", ["fp32", "fp16"])
    def test_what_is_launched_again_is_the_step(self, precision: str, steady: Trained, tmp_path: Path) -> None:
        """Rates on their schedules, steps of two microbatches, lanes that end: to the bit."""
        expected = steady if precision == "fp32" else trained(LANES, tmp_path, steady=True, precision=precision)
        made = trained(LANES, tmp_path, steady=True, recorded=True, precision=precision)
        assert_identical(made, expected)
        assert made.graphs is not None and made.graphs.replayed == 7, (
            "a step of all lanes comes once, a last lane's too"
        )
        assert len(made.recorder.tapes) == 1

    def test_it_reads_what_stays(self, tmp_path: Path) -> None:
        """Of two recordings of one shape the memory outside of them is the same, but for the batch's own; and no random
        number is drawn on the way."""
        made = []
        begun = torch.get_rng_state(), random.getstate()
        model, recorder = builders.model(), Recorder()
        data = prepare(LANES[:2], model, Store(tmp_path))
        graphs = Graphs(CPU, recorder, warm=0)
        with open_slots(data, model) as slots:
            lanes = [enter(slots, slot, entry, model) for slot, entry in enumerate(data)]
            loop = Loop(lanes, slots, model, memory._Silent(), lambda *_: None, steady=True, graphs=graphs)
            with closing(loop):
                for _ in range(2):
                    loop.microbatch()
                    (recorded,) = graphs._recorded.values()
                    made.append(recorder.tapes[-1].outside() - {address(recorded.buffer)})
                    graphs.close()
        assert len(recorder.tapes) == 2 and made[0] == made[1]
        names = [[str(operation[0]) for operation in tape.operations] for tape in recorder.tapes]
        assert names[0] == names[1]
        assert torch.equal(begun[0], torch.get_rng_state()) and begun[1] == random.getstate()

    def test_a_step_that_cannot_be_recorded_is_made_as_before(
        self, steady: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        def refuse(work: Callable[[], Results]) -> Callable[[], Results]:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand more")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Recorder, "__call__", lambda self, work: refuse(work))
            made = trained(LANES, tmp_path, steady=True, recorded=True)
        assert_identical(made, steady)
        (line,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
        assert line.endswith("recording one failed (CUDA error: operation not permitted when stream is capturing)")

    def test_only_what_comes_often(self) -> None:
        recorder = Recorder()
        graphs = Graphs(CPU, recorder, warm=2, most=1)
        batch = some_batch()
        for shape in "aabba":
            graphs.run(shape, batch, lambda sent: (sent.noise + 1, None))
        assert len(recorder.tapes) == 1 and graphs.replayed == 1
        for _ in range(3):
            assert torch.equal(graphs.run("b", batch, lambda sent: (sent.noise + 1, None))[0], batch.noise + 1)
        assert len(recorder.tapes) == 1, "there is room for one"


def some_batch() -> Batch:
    rows = torch.arange(2)
    ones, noise = torch.ones(2), torch.randn(2, 4)
    return Batch(rows, noise, noise, rows, ones, ones, rows, ones[:1, None], ones[:1], ones)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"optimizer": "prodigy"}, "train.optimizer=prodigy"),
        ({"adapters": {"text_encoder": True}}, "lora.text_encoder=true"),
        ({"gradient_checkpointing": True}, "train.gradient_checkpointing=true"),
        ({}, None),
    ],
)
def test_what_is_known_beforehand(settings: dict[str, Any], reason: str | None) -> None:
    class Asked:
        """What is asked of a lane, and of a model."""

        training = builders.training(**settings)
        cfg = training.cfg
        device = torch.device("cuda")

    asked: Any = Asked()
    assert graph.obstacle([asked], asked) == reason
    asked.device = CPU
    assert graph.obstacle([asked], asked) == "model.device=cpu"
