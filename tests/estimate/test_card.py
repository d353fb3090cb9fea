"""The package's code on a card that is not there: no mixed device, no wide product, no unlisted wait, few launches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from accelerate import PartialState
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dbexp import models
from dbexp.config.families import FAMILIES
from dbexp.core.device import DTYPES, pick_device
from dbexp.core.store import Store
from dbexp.estimate import hollow
from dbexp.estimate.card import PretendedCard
from dbexp.estimate.operation import Operation
from dbexp.estimate.published import PUBLISHED
from dbexp.sample.draw import Drawing, Engine
from dbexp.sample.shots import Shot
from dbexp.train import memory
from dbexp.train.data import prepare
from dbexp.train.graph import Graphs, Results
from dbexp.train.lane import enter, open_slots
from dbexp.train.loop import Loop
from dbexp.train.result import Trained
from dbexp.train.train import train
from tests import builders, sweeps
from tests.models import families
from tests.train.test_graph import tensors

PRODUCTS = ("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm", "aten.convolution", "aten._scaled_dot_product")

WAITS = {
    ("an event", "train/readings.py take"),  # losses of a step before, once in train.log_every steps
    ("copy to the card", "models/ddpm.py add_noise"),  # the noise schedule, at the first step
    ("index by a mask", "models/z_image.py _texts"),  # texts of different length; the pipeline itself does so
    ("copy to the host", "models/z_image.py _texts"),
    ("copy to the card", "models/qwen_image.py predict"),  # its class makes the places of tokens on the host
    ("copy to the card", "models/z_image.py predict"),  # likewise
}
"""Where the host may wait for the card while a microbatch is computed."""


@dataclass(frozen=True)
class Seen:
    """One call of `Loop.microbatch`."""

    operations: Counter[Operation]
    waits: set[tuple[str, str]]

    @property
    def launches(self) -> int:
        return sum(self.operations.values())


@contextmanager
def microbatches(card: PretendedCard) -> Iterator[list[Seen]]:
    """What each microbatch does inside the block."""
    seen: list[Seen] = []
    step = Loop.microbatch

    def watched(loop: Loop, *args: object) -> bool:
        card.forget()
        read = step(loop, *args)  # type: ignore[arg-type]  # as they came
        seen.append(Seen(Counter(card.operations), {*card.waits}))
        return read

    with patch.object(Loop, "microbatch", watched):
        yield seen


def wide_products(operations: Iterable[Operation], dtype: torch.dtype) -> list[str]:
    """Matrix products, convolutions and attention that read anything finer than a precision."""
    return sorted(
        {
            operation.name
            for operation in operations
            if operation.name.startswith(PRODUCTS)
            and any(kind.is_floating_point and kind.itemsize > dtype.itemsize for _, kind in operation.inputs[:3])
        }
    )


def unlisted(seen: Iterable[Seen]) -> set[tuple[str, str]]:
    return {wait for each in seen for wait in each.waits} - WAITS


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Pipeline folders of small random weights."""
    root = tmp_path_factory.mktemp("models")
    store = Store(root / "store")

    def folder(family: str) -> Path:
        random = models.load(builders.model_config(path="random", resolution=64, family=family), store)
        return Path(random._folder)  # type: ignore[attr-defined]  # a checkpoint's

    return folder


def small_sweep(family: str, precision: str, folder: Path, work: Path, card: PretendedCard) -> list[Seen]:
    """Two lanes of other ranks with prior, accumulation, checkpointing and text encoders, then pictures of one."""
    config = builders.model_config(path=str(folder), resolution=64, family=family, device="cuda", precision=precision)
    adapters = {"text_encoder": bool(FAMILIES[family].text_parts)}
    settings = {"steps": 2, "grad_accum": 2, "gradient_checkpointing": True}
    trainings = [
        families.training(64, seed=seed, adapters={"rank": rank, **adapters}, **settings)
        for seed, rank in ((1, 4), (2, 8))
    ]
    with card, hollow.parts_without_weights(card):
        store = Store(work / "store")
        model = models.load(config, store)
        with microbatches(card) as seen:
            (first, second) = train(trainings, model, store)
        assert isinstance(first, Trained), first
        assert isinstance(second, Trained), second
        drawing = Drawing(2, 4.0, None, "", 64, 64, 2, lora=first.lora)
        shots = [Shot("a red dog", 1, "1.png"), Shot("a dog", 2, "2.png")]
        Engine(model, drawing).draw([shots], work, {}, memory._Silent(), "batch_size")
    assert (work / "2.png").is_file()
    return seen


LAUNCHES = {
    "sd": ("fp16", 1490),
    "sdxl": ("bf16", 1930),
    "flux2_klein": ("bf16", 1155),
    "z_image": ("bf16", 1440),
    "qwen_image": ("bf16", 705),
    "krea2": ("bf16", 1120),
    "sd3": ("bf16", 1830),
    "flux": ("bf16", 1680),
    "flux2": ("bf16", 1170),
}
"""Family -> precision, and operations of a small step at most."""


def test_every_family_is_looked_at() -> None:
    assert LAUNCHES.keys() == FAMILIES.keys()


@pytest.mark.parametrize(("family", "precision", "most"), [(name, *each) for name, each in LAUNCHES.items()])
def test_a_small_sweep_of_a_family(
    family: str, precision: str, most: int, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    seen = small_sweep(family, precision, folders(family), tmp_path, PretendedCard())
    assert len(seen) == 4
    assert unlisted(seen) == set()
    steady = seen[-1]
    assert steady.launches <= most, steady.launches
    assert steady.launches > 0.9 * most  # a number that is far off holds nothing
    assert wide_products(steady.operations, DTYPES[precision]) == []
    models.forget()  # its parts are on a card that is gone


def test_a_whole_sweep(tmp_path: Path) -> None:
    """Class images, training, samples, metrics and the table, by the command itself."""
    card = PretendedCard()
    words = [word for word in sweeps.tiny(tmp_path / "store") if not word.startswith("train.steps")]
    with card, hollow.parts_without_weights(card):
        outcome = sweeps.dbexp_command(
            tmp_path, "-m", *words, "model=random", f"model.path={builders.checkpoint()}", "model.device=cuda",
            "model.precision=fp16", "lora.rank=2,4", "train.steps=3", "hydra.sweep.dir=sweep",
        )  # fmt: skip
    assert outcome.status == 0, outcome.err
    rows = sweeps.results(tmp_path / "sweep")
    assert [row["status"] for row in rows] == ["finished", "finished"]
    assert all(row["dino"] and row["clip_t"] and row["div"] for row in rows)


MOST = 2160
"""Operations of a step of Stable Diffusion 1.5 with eight lanes; 2,300 were aimed at."""


def test_operations_of_stable_diffusion_at_its_true_size(tmp_path: Path) -> None:
    """They were 5,072 before adapters were one operation of autograd, in a base without autocast."""
    name, card = "stable-diffusion-v1-5/stable-diffusion-v1-5", PretendedCard()
    folder = hollow.write(tmp_path / "sd15", PUBLISHED[name], "sd")
    config = builders.model_config(path=str(folder), resolution=512, device="cuda", precision="bf16")
    with card, hollow.parts_without_weights(card):
        model = models.load(config, Store(tmp_path / "store"))
        training = families.training(512, weight=0.0, adapters={"rank": 16})
        with memory.copies(training, 8, model, Store(tmp_path / "store")) as loop:
            for _ in range(2):
                card.forget()
                card.peak = card.allocated
                loop.microbatch()
    launches = sum(card.operations.values())
    flops = sum(operation.flops * count for operation, count in card.operations.items())
    assert launches <= MOST
    assert {*card.waits} <= WAITS
    assert flops == pytest.approx(14.23e12, rel=0.01)  # attention's backward pass counts as 2.5 forward ones
    assert 7.5 * 2**30 < card.peak < 8.6 * 2**30
    assert wide_products(card.operations, torch.bfloat16) == []
    models.forget()


class Region(TorchDispatchMode):
    """What a recorded step reads that it did not make, by the storages of tensors on the card."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch
        self.outside: set[int] = set()
        self._made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.outside |= {tensor.untyped_storage()._cdata for tensor in tensors([args])} - self._made
        out = func(*args, **(kwargs or {}))
        self._made |= {tensor.untyped_storage()._cdata for tensor in tensors([out])} - self.outside
        return out


@dataclass(frozen=True)
class Launched:
    """A step that would be launched as it was recorded."""

    operations: Counter[Operation]
    waits: set[str]
    stays: int
    """Bytes of what it made and did not let go."""
    outside: set[int]


@pytest.mark.parametrize(
    ("family", "waits"),
    [("sd", set()), ("z_image", {"z_image.py _texts"})],
)
def test_a_step_can_be_recorded(family: str, waits: set[str], folders: Callable[[str], Path], tmp_path: Path) -> None:
    """From one to the next: equal operations on equal shapes, the same memory outside of it, nothing that stays but its
    results, no random number, and no wait, where the class of the denoiser has none of its own."""
    card, seen = PretendedCard(), list[Launched]()

    def record(work: Callable[[], Results]) -> Callable[[], Results]:
        def replay() -> Results:
            card.forget()
            before, region = card.allocated, Region()
            with region:
                results = work()
            places = {place.rpartition("/")[2] for _, place in card.waits}
            seen.append(Launched(Counter(card.operations), places, card.allocated - before, region.outside))
            return results

        return replay

    config = builders.model_config(
        path=str(folders(family)), resolution=64, family=family, device="cuda", precision="bf16"
    )
    with card, hollow.parts_without_weights(card):
        store = Store(tmp_path / "store")
        model = models.load(config, store)
        trainings = [families.training(64, seed=seed, steps=steps) for seed, steps in ((1, 6), (2, 6), (3, 3))]
        data = prepare(trainings, model, store)
        with open_slots(data, model) as slots:
            lanes = [enter(slots, slot, entry, model) for slot, entry in enumerate(data)]
            graphs = Graphs(model.device, record, warm=1)
            loop = Loop(lanes, slots, model, memory._Silent(), lambda *_: None, steady=True, graphs=graphs)
            begun = torch.get_rng_state()
            with closing(loop):
                for _ in range(6):
                    loop.microbatch()
                replayed = graphs.replayed
            assert torch.equal(begun, torch.get_rng_state())
    models.forget()
    assert replayed == len(seen) == 2 + 2, "of three steps with all lanes two, and of three with an idle seat"
    for first, *others in (seen[:2], seen[2:]):
        assert first.waits == waits and first.stays <= 2 * 512
        for other in others:
            assert (other.operations, other.stays, other.waits) == (first.operations, first.stays, first.waits)
            assert other.outside == first.outside


class TestOffenders:
    """Each check fails on what it is there for."""

    def test_a_mixed_device(self) -> None:
        with PretendedCard(), pytest.raises(RuntimeError, match="same device, but found cuda:0 and cpu"):
            torch.ones(3, device="cuda") + torch.ones(3)

    @pytest.mark.parametrize(
        ("offence", "wait"),
        [
            (lambda x: x.sum().item(), "a number is read"),
            (lambda x: float(x[0]), "a number is read"),
            (lambda x: x.cpu(), "copy to the host"),
            (lambda x: x.tolist(), "copy to the host"),
            (lambda x: x[[0, 1]], "index by numbers of the host"),
            (lambda x: x[x > 0], "index by a mask"),
            (lambda x: (x > 0).nonzero(), "places that are not zero"),
            (lambda x: torch.tensor([1.0], device="cuda"), "copy to the card"),
            (lambda x: torch.ones(1 << 20).to("cuda", non_blocking=True), "copy to the card"),
            (lambda x: torch.cuda.synchronize(), "synchronize"),
        ],
    )
    def test_a_wait(self, offence: Callable[[torch.Tensor], object], wait: str) -> None:
        with PretendedCard() as card:
            x = torch.ones(4, device="cuda")
            card.forget()
            offence(x)
        assert {why for why, _ in card.waits} == {wait}

    @pytest.mark.parametrize(
        "harmless",
        [
            lambda x: torch.ones(4).to("cuda", non_blocking=True),
            lambda x: torch.ones(1 << 20).pin_memory().to("cuda", non_blocking=True),
            lambda x: x[0:2] * 2.0,
            lambda x: x[torch.arange(2, device="cuda")],
        ],
    )
    def test_no_wait(self, harmless: Callable[[torch.Tensor], object]) -> None:
        with PretendedCard() as card:
            x = torch.ones(4, device="cuda")
            card.forget()
            harmless(x)
        assert not card.waits

    def test_a_wait_inside_a_microbatch(
        self, folders: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        forward = Loop._pass

        def offender(loop: Loop, group: object) -> torch.Tensor:
            per_row = forward(loop, group)  # type: ignore[arg-type]  # as it came
            assert per_row.sum().item() != 0
            return per_row

        monkeypatch.setattr(Loop, "_pass", offender)
        card = PretendedCard()
        with card, hollow.parts_without_weights(card):
            store = Store(tmp_path / "store")
            model = models.load(builders.model_config(path=str(folders("sd")), resolution=64, device="cuda"), store)
            with memory.copies(families.training(64), 1, model, store) as loop, microbatches(card) as seen:
                loop.microbatch()
        assert unlisted(seen) == {("a number is read", "train/loop.py _passes")}
        models.forget()

    def test_a_wide_product(self) -> None:
        with PretendedCard() as card:
            wide, narrow = (nn.Linear(4, 4, device="cuda", dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
            narrow(torch.ones(2, 4, device="cuda", dtype=torch.bfloat16))
            assert wide_products(card.operations, torch.bfloat16) == []
            wide(torch.ones(2, 4, device="cuda")).sum().backward()
            assert wide_products(card.operations, torch.bfloat16) == ["aten.addmm.default", "aten.mm.default"]

    def test_more_operations(self) -> None:
        with PretendedCard() as card:
            x = torch.ones(4, device="cuda")
            card.forget()
            x.view(2, 2).t()  # a view launches nothing
            assert not card.operations
            (x + 1).relu_()
            assert sum(card.operations.values()) == 2


class TestMemory:
    def test_what_is_let_go_is_free_again(self) -> None:
        with PretendedCard() as card:
            x = torch.empty(1 << 20, device="cuda")
            y = x.view(2, -1)
            assert card.allocated == 4 << 20
            del x
            assert card.allocated == 4 << 20
            del y
            assert card.allocated == 0
        assert card.peak == 4 << 20

    def test_nobody_believes_in_it_afterwards(self) -> None:
        """Accelerate asks once in a process which device there is; a run after an estimate must not be told cuda."""
        before = dict(PartialState._shared_state)
        with patch.dict(PartialState._shared_state, clear=True):
            with PretendedCard():
                assert pick_device("auto").type == "cuda"
            assert pick_device("auto").type == "cpu"
        assert before == PartialState._shared_state

    def test_a_backward_pass_keeps_what_it_needs(self) -> None:
        with PretendedCard() as card:
            weight = torch.empty(256, 256, device="cuda", requires_grad=True)
            out = (torch.empty(1024, 256, device="cuda") @ weight).sigmoid()
            assert card.allocated == 4 * (256 * 256 + 2 * 1024 * 256) + 512 * 0
            out.sum().backward()
            assert weight.grad is not None and weight.grad.device.type == "cuda"

    def test_numbers_that_are_known_come_back(self) -> None:
        with PretendedCard():
            mask = torch.tensor([True, False, True]).to("cuda")
            assert mask.sum().item() == 2
            assert torch.arange(3, device="cuda")[mask].shape == (2,)
            lost = torch.ones(3).to("cuda").mul_(torch.empty(3, device="cuda"))
            assert lost.tolist() != [1.0, 1.0, 1.0]
