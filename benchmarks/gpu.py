"""Everything that dbexp claims of a GPU, measured on one in parts of less than ten minutes each.

    python benchmarks/gpu.py out=results
    python benchmarks/gpu.py out=results family=z_image parts=ceilings,lanes,sample
    python benchmarks/gpu.py out=results quick=true

Weights are random and made on the device, at the size of the family's published checkpoint: nothing is downloaded.
Each part writes `gpu.json` and `gpu.md` anew, so what was measured stays when a later part fails. Every time is the
median of three series after a warm-up. `quick=true` runs every part at a tiny size, on a CPU too: a test of this
script, whose numbers mean nothing.

| part | what |
|---|---|
| ceilings | copies, matrix products and attention: what the rest can reach at best |
| parity | losses and pictures of the built-in model against the CPU's, alone and in a pack, in three precisions |
| lanes | a step of 1 to 16 lanes, beside a plain loop over PEFT (autocast, AdamW, one run) |
| prior, fp16, compile | the same with class images, in fp16, and with torch.compile over the denoiser |
| sample | images by batch |
| sweep | four runs of the built-in model by the command, and the same again from the store |
| pretrain | a step of pre-training of the built-in model's denoiser |
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig as PeftConfig
from peft import inject_adapter_in_model
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dbexp import api, models
from dbexp.config.fields import comma_list
from dbexp.config.schema import Config
from dbexp.config.words import parse
from dbexp.core import provenance
from dbexp.core.device import is_out_of_memory
from dbexp.core.files import write_atomic
from dbexp.core.store import Store
from dbexp.estimate import hollow
from dbexp.estimate.cards import CARDS
from dbexp.estimate.published import PUBLISHED
from dbexp.models import GUIDANCE, SIZES, Batch, Model
from dbexp.models.checkpoint import Checkpoint
from dbexp.pipeline import prepare
from dbexp.pipeline.requests import training_request
from dbexp.train import memory
from dbexp.train.data import Training
from dbexp.train.result import Trained
from dbexp.train.train import train

CHECKPOINTS = {
    "sd": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "flux2_klein": "black-forest-labs/FLUX.2-klein-base-4B",
    "z_image": "Tongyi-MAI/Z-Image",
}
OPTIONS = {"sd": "sd15", "sdxl": "sdxl", "flux2_klein": "flux2_klein_4b", "z_image": "z_image"}
USAGE = "benchmarks/gpu.py: what dbexp does on a GPU\n"


@dataclass
class Settings:
    """One call of this script."""

    out: str = "gpu"
    """Folder of gpu.json and gpu.md."""
    family: str = "sd"
    """sd, sdxl, flux2_klein or z_image."""
    parts: list[str] = comma_list([])
    """Which parts; none: all."""
    counts: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16])
    """Lanes."""
    steps: int = 15
    """Steps of each of the three series."""
    quick: bool = False
    """Tiny sizes, few repetitions."""
    device: str = "auto"
    """cuda, cpu or auto."""


class Bench:
    """What the parts share.

    Args:
        settings: of the script.
        scratch: a folder for models, pictures and stores.
    """

    def __init__(self, settings: Settings, scratch: Path) -> None:
        self.settings, self.scratch, self.quick = settings, scratch, settings.quick
        cuda = torch.cuda.is_available() if settings.device == "auto" else settings.device.startswith("cuda")
        self.device = torch.device("cuda" if cuda else "cpu")
        self.counts = settings.counts[:2] if self.quick else settings.counts

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def timed(self, step: Callable[[], object]) -> dict[str, float]:
        """Milliseconds of a step: median, least and most of three series; and what the host takes to issue one."""
        warm, steps = (1, 1) if self.quick else (min(6, self.settings.steps), self.settings.steps)
        for _ in range(warm):
            step()
        self.synchronize()
        wall, host = [], []
        for _ in range(3):
            begun = time.perf_counter()
            for _ in range(steps):
                step()
            issued = time.perf_counter()
            self.synchronize()
            wall.append(1e3 * (time.perf_counter() - begun) / steps)
            host.append(1e3 * (issued - begun) / steps)
        return {
            "ms": statistics.median(wall),
            "least": min(wall),
            "most": max(wall),
            "host_ms": statistics.median(host),
        }

    def peak_mib(self) -> int | None:
        """Of torch's tensors since `forget_peak`; None without a GPU."""
        return torch.cuda.max_memory_allocated() >> 20 if self.device.type == "cuda" else None

    def forget_peak(self) -> None:
        """Let go of what is not used, and count anew."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def config(self, *words: str) -> Config:
        """A config of the family at its published size, or tiny."""
        family, size = self.settings.family, ["model=random", f"model.family={self.settings.family}"]
        if not self.quick:
            size = [f"model={OPTIONS[family]}"]
        composed = api.compose([*size, f"model.device={self.device}", "train.gradient_checkpointing=false", *words])
        train = replace(composed.train, steps=10**6, grad_accum=1, checkpoint_every=0)
        if self.quick:
            return replace(composed, train=train)
        folder = self.scratch / family
        if not folder.exists():
            hollow.write(folder, PUBLISHED[CHECKPOINTS[family]], family)
        return replace(composed, train=train, model=replace(composed.model, path=str(folder)))

    @contextmanager
    def model(self, config: Config) -> Iterator[Model]:
        """The base model of a config, its weights random where they are not tiny."""
        before = vars(Checkpoint)["read"]
        if not self.quick:
            Checkpoint.read = staticmethod(self._random)
        try:
            yield models.load(config.model, Store(self.scratch / "store"))
        finally:
            Checkpoint.read = before
            models.forget()

    def _random(self, cls: Any, folder: Path, *, dtype: torch.dtype, **_: Any) -> nn.Module:
        with torch.device("meta"):
            module: nn.Module = nn.Module.to(hollow.build(cls, folder), dtype)
        module.to_empty(device=self.device)
        with torch.no_grad():
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                if not tensor.is_floating_point():
                    tensor.copy_(torch.arange(tensor.numel(), device=self.device).view(tensor.shape))  # positions
                elif tensor.dim() == 1:
                    tensor.fill_(1.0 if name.endswith(("weight", "var")) else 0.0)
                else:
                    tensor.normal_(0, 0.5 / max(tensor[0].numel(), 1) ** 0.5)
        return module.eval()

    def training(self, config: Config) -> Training:
        """What its lanes train on: noise."""
        side, random = config.model.resolution, np.random.default_rng(0)
        paths = tuple(self.scratch / f"noise-{side}-{number}.png" for number in range(4))
        for path in paths:
            if not path.exists():
                Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
        return training_request(config, paths, "a photo of sks dog", paths if config.prior.weight else ())

    def dense(self) -> float | None:
        """TFLOP/s in 16 bits that the card's data sheet promises; None: it is not known."""
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else ""
        return next((card.rate for card in CARDS.values() if card.title in name), None)


Row = dict[str, Any]


def ceilings(bench: Bench) -> list[Row]:
    """What copies, products and attention reach."""
    rows: list[Row] = []
    device, dtype = bench.device, torch.bfloat16
    one = torch.empty(1 << (16 if bench.quick else 30), dtype=dtype, device=device).normal_()
    other = torch.empty_like(one)
    found = bench.timed(lambda: other.copy_(one))
    rows.append({"what": "copy", **found, "GB_s": 2 * one.nbytes / found["ms"] / 1e6})
    for side in (64,) if bench.quick else (4096, 8192):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        found = bench.timed(lambda a=a, b=b: a @ b)  # type: ignore[misc]  # called at once
        rows.append({"what": f"product {side}", **found, "TFLOP_s": 2 * side**3 / found["ms"] / 1e9})
    for width, length in ((8, 64),) if bench.quick else ((40, 4096), (80, 1024), (128, 4608)):
        q, k, v = (torch.randn(4, 8, length, width, device=device, dtype=dtype) for _ in range(3))
        found = bench.timed(lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v))  # type: ignore[misc]  # likewise
        flops = 4 * 32 * length**2 * width
        rows.append({"what": f"attention {width} x {length}", **found, "TFLOP_s": flops / found["ms"] / 1e9})
    return rows


def parity(bench: Bench) -> list[Row]:
    """The built-in model on the device against the CPU in fp32; alone, and last in a pack of three."""
    name, steps = ("random", 2) if bench.quick else ("storybook", 10)
    losses: dict[tuple[str, str, int], list[float]] = {}
    kinds = [("cpu", "fp32"), *((bench.device.type, precision) for precision in ("fp32", "bf16", "fp16"))]
    for device, precision in dict.fromkeys(kinds):
        words = [f"model={name}", f"model.device={device}", f"model.precision={precision}"]
        config = api.compose([*words, f"train.steps={steps}", "prior.weight=0", "train.checkpoint_every=0"])
        model = models.load(config.model, Store(bench.scratch / "parity"))
        training = prepare.make_training(config, model, Store(bench.scratch / "parity"))
        others = [replace(training, seeds=replace(training.seeds, init=seed, noise=seed)) for seed in (1, 2)]
        for lanes in ([training], [*others, training]):
            store = Store(bench.scratch / f"parity-{device}-{precision}-{len(lanes)}")
            result = train(lanes, model, store)[-1]
            if not isinstance(result, Trained):
                raise result
            losses[device, precision, len(lanes)] = [row["loss"] for row in result.history]
        models.forget()
    want = losses["cpu", "fp32", 1]
    return [
        {
            "what": f"{device} {precision}, {lanes} lane(s)",
            "largest_relative_difference": max(abs(a / b - 1) for a, b in zip(found, want, strict=True)),
        }
        for (device, precision, lanes), found in losses.items()
    ]


def steps(bench: Bench, counts: Sequence[int], *words: str, compiled: bool = False) -> list[Row]:
    """Steps of so many lanes."""
    rows: list[Row] = []
    config = bench.config("prior.weight=0", *words)
    with bench.model(config) as model:
        training = bench.training(config)
        for count in counts:
            bench.forget_peak()
            row: Row = {"what": f"lanes at once: {count}", "lanes": count}
            try:
                with memory.copies(training, count, model, Store(bench.scratch / "latents")) as loop:
                    if compiled:
                        model.part(model.family.denoiser).compile()
                    row |= _rate(bench, loop.microbatch, count)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                row["out_of_memory"] = True
            rows.append(row)
    return rows


def _rate(bench: Bench, step: Callable[[], object], runs: int) -> Row:
    found = bench.timed(step)
    peak = bench.peak_mib()
    with FlopCounterMode(display=False) as counter:
        step()
    rate, dense = counter.get_total_flops() / found["ms"] / 1e9, bench.dense()
    share = None if dense is None else rate / dense
    return {**found, "run_steps_s": 1e3 * runs / found["ms"], "TFLOP_s": rate, "of_dense": share, "peak_MiB": peak}


def plain(bench: Bench, *words: str) -> Row:
    """The baseline: a loop as people write it, one run, latents and text encoded before."""
    config = bench.config("prior.weight=0", *words)
    with bench.model(config) as model:
        training = bench.training(config)
        with memory.copies(training, 1, model, Store(bench.scratch / "latents")) as loop:
            data = loop.lanes[0].data
        denoiser = model.part(model.family.denoiser)
        sites = list(model.sites(model.family.denoiser, config.lora.sites))
        rank = config.lora.rank
        inject_adapter_in_model(PeftConfig(r=rank, lora_alpha=rank, target_modules=sites), denoiser)
        trained = [weight for name, weight in denoiser.named_parameters() if "lora_" in name]
        for weight in trained:
            weight.data = weight.data.float()
            weight.requires_grad_()
        optimizer = torch.optim.AdamW(trained, lr=1e-4)
        half = model.dtype != torch.float32
        clean, generator = data.instance.mean[:1].to(bench.device), torch.Generator().manual_seed(0)
        text = {name: value.to(bench.device) for name, value in model.collate([(data.text, [1])]).items()}
        guidance = torch.tensor([config.train.guidance], device=bench.device)
        text = {**text, SIZES: data.instance.sizes[:1].to(bench.device), GUIDANCE: guidance}

        def step() -> None:
            noise = torch.randn_like(clean)
            times = model.draw_times(1, generator, config.train, config.model.resolution).to(bench.device)
            with torch.autocast(bench.device.type, model.dtype) if half else nullcontext():
                noisy = model.add_noise(clean, noise, times)
                predicted = model.predict(noisy, times, text)
            loss = F.mse_loss(predicted.float(), model.target(clean, noise, times))
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            loss.item()  # as scripts log it

        bench.forget_peak()
        return {"what": "plain loop", "lanes": 1, **_rate(bench, step, 1)}


def lanes(bench: Bench) -> list[Row]:
    """Lanes in the precision of the device, beside the plain loop and the solo run."""
    return _beside(bench, [plain(bench), *steps(bench, bench.counts)])


def _beside(bench: Bench, rows: list[Row]) -> list[Row]:
    """With each row, how many times the throughput of the plain loop and of one lane it has."""
    for row in rows:
        for name, base in (("x_plain", rows[0]), ("x_solo", rows[1])):
            if "ms" in row:
                row[name] = row["run_steps_s"] / base["run_steps_s"]
    return rows


def prior(bench: Bench) -> list[Row]:
    """With class images: two rows a lane."""
    return steps(bench, (1, 2) if bench.quick else (1, 8), "prior.weight=1", "prior.count=4")


def fp16(bench: Bench) -> list[Row]:
    """With a loss scaler a lane, where the family bears fp16."""
    if bench.settings.family == "z_image":
        return [{"what": "left out: the family overflows in fp16"}]
    return steps(bench, (1,) if bench.quick else (1, 8), "model.precision=fp16")


def compiled(bench: Bench) -> list[Row]:
    """torch.compile over the denoiser, of fixed shapes."""
    if bench.quick:
        return [{"what": "left out: quick"}]
    return steps(bench, (1, 8), compiled=True)


def sample(bench: Bench) -> list[Row]:
    """Images by batch: a step of the sampler, and what comes after it."""
    rows: list[Row] = []
    config = bench.config()
    with bench.model(config) as model, torch.no_grad():
        text, negative = model.encode(model.tokenize(["a photo of a dog"])), model.unconditional("")
        side, guidance = config.sample.resolution, config.sample.guidance_scale
        for images in (1,) if bench.quick else (1, 4, 8, 16):
            bench.forget_peak()
            texts = [model.collate([(each, [images])]) for each in (text, negative)]
            seconds = {}
            for count in (2, 3) if bench.quick else (2, 5, 25):
                against = texts[1] if model.guided(guidance) else None
                batch = Batch(texts[0], against, tuple(range(images)), count, guidance, side, side)
                pipe = model.pipeline(config.sample.sampler)
                begun = time.perf_counter()
                model.draw(pipe, batch)
                bench.synchronize()
                seconds[count] = time.perf_counter() - begun
            few, many = sorted(seconds)[-2:]
            step = (seconds[many] - seconds[few]) / (many - few)
            row = {"what": f"{images} images", "ms": 1e3 * step, "rest_ms": 1e3 * (seconds[few] - few * step)}
            rows.append({**row, "images_s": images / (50 * step) if step > 0 else None, "peak_MiB": bench.peak_mib()})
    return rows


def sweep(bench: Bench) -> list[Row]:
    """Four runs by the command, and the same again."""
    words = [f"store={bench.scratch / 'sweep-store'}", "tracking.mode=disabled", f"model.device={bench.device.type}"]
    words += ["lora.rank=4,16", "seed=1,2"]
    if bench.quick:
        words += ["model=random", "lora.rank=2,4", "seed=1", "train.steps=2", "prior.weight=0", "sample.steps=2"]
        words += ["sample.images_per_prompt=1", "sample.class_images=1", 'sample.prompts=["a {token} {class}"]']
        words = [word for word in words if word not in ("lora.rank=4,16", "seed=1,2")]
    rows = []
    for name in ("first", "again"):
        rows.append(
            {"what": name, **_command(["-m", "dbexp", "-m", *words, f"hydra.sweep.dir={bench.scratch / name}"])}
        )
    return rows


def pretrain(bench: Bench) -> list[Row]:
    """Two minutes of the denoiser's pre-training."""
    if bench.quick:
        return [{"what": "left out: quick"}]
    out = bench.scratch / "pretrain"
    weights = Path(models.__file__).parents[1] / "storybook" / "weights"
    words = ["-m", "dbexp.storybook.pretrain", "--out", str(out), "--stage", "unet", "--from", str(weights)]
    return [{"what": "two minutes", **_command([*words, "--hours", "0.033", "--device", bench.device.type])}]


def _command(words: Sequence[str]) -> Row:
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    row: Row = {"seconds": time.perf_counter() - begun, "status": done.returncode}
    tail = (done.stderr or done.stdout).strip().splitlines()[-3:]
    return row if done.returncode == 0 and "pretrain" not in " ".join(words) else {**row, "last_lines": tail}


PARTS: dict[str, Callable[[Bench], list[Row]]] = {
    "ceilings": ceilings,
    "parity": parity,
    "lanes": lanes,
    "prior": prior,
    "fp16": fp16,
    "compile": compiled,
    "sample": sample,
    "sweep": sweep,
    "pretrain": pretrain,
}


def report(found: dict[str, Any]) -> str:
    """The results as a page of Markdown."""
    machine = found["provenance"]["device"]
    lines = [f"# dbexp on {machine.get('name', machine.get('type'))}, {found['date']}", ""]
    lines += [f"Command: `{found['command']}`", "", f"Versions: {json.dumps(found['provenance']['packages'])}", ""]
    if found["settings"]["quick"]:
        lines += ["Quick: tiny sizes, a test of the script. These numbers mean nothing.", ""]
    for part, rows in found["parts"].items():
        lines += [f"## {part}", ""]
        if isinstance(rows, str):
            lines += [f"Failed: {rows}", ""]
            continue
        names = list(dict.fromkeys(name for row in rows for name in row))
        lines += [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
        lines += [f"| {' | '.join(_cell(row.get(name)) for name in names)} |" for row in rows]
        lines.append("")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def main(words: Sequence[str] | None = None) -> int:
    """Measure; the exit status is 1 if a part failed."""
    words = sys.argv[1:] if words is None else words
    settings = parse(Settings, words, USAGE)
    unknown = sorted({*settings.parts} - {*PARTS})
    if unknown or settings.family not in CHECKPOINTS:
        sys.exit(f"parts={','.join(unknown)} family={settings.family}: choose of {', '.join((*PARTS, *CHECKPOINTS))}")
    out, failed = Path(settings.out), False
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="dbexp-gpu-") as scratch:
        bench = Bench(settings, Path(scratch))
        found: dict[str, Any] = {
            "date": time.strftime("%Y-%m-%d"),
            "command": " ".join(["python benchmarks/gpu.py", *words]),
            "settings": vars(settings),
            "provenance": provenance.collect(bench.device),
            "parts": {},
        }
        for part in settings.parts or PARTS:
            begun = time.perf_counter()
            try:
                found["parts"][part] = PARTS[part](bench)
            except Exception as error:  # what other parts measure is worth having
                found["parts"][part], failed = f"{type(error).__name__}: {error}", True
            print(f"{part}: {time.perf_counter() - begun:.0f} s", flush=True)
            write_atomic(out / "gpu.json", json.dumps(found, indent=1, default=str))
            write_atomic(out / "gpu.md", report(found))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
