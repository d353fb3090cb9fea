"""Pre-train the built-in model: `python -m dbexp.storybook.pretrain --out FOLDER`.

Stages, in order: `vae`, then `unet` (with the text encoder, on the latents of that VAE); the metric networks `dino`,
`clip` and `lpips` need none of the others. Kill it at any time; the same command goes on where it was. Where its
folder is lost, `--from dbexp/storybook/weights --rate 0.3` goes on from the model that was shipped: the full rates
would first undo what it learnt. Two idle cores serve best as two processes with folders and seeds of their own, each
the other's `--peer`. At last `export` writes FOLDER/model (the pipeline in fp16 safetensors, metric networks below
`metrics/`) and FOLDER/samples.png.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import torch

from dbexp.core.errors import ConfigError
from dbexp.storybook.pretrain import export, latent_pool, start, train_metric_nets, train_unet, train_vae
from dbexp.storybook.pretrain.training import CHECKPOINT, Recipe, Task, Trainer

BuildTask: TypeAlias = Callable[[argparse.Namespace, torch.device, Executor | None], Task]


@dataclass(frozen=True)
class Stage:
    """One stage: how to build its task, and its recipes."""

    build: BuildTask
    cpu: Recipe
    gpu: Recipe


def _vae(options: argparse.Namespace, device: torch.device, executor: Executor | None) -> Task:
    return train_vae.VaeTask(device, options.seed, executor)


def _unet(options: argparse.Namespace, device: torch.device, executor: Executor | None) -> Task:
    out: Path = options.out
    vae = train_unet.load_vae(out, device)
    pin_vae(out / "unet", latent_pool.weights_hash(vae.encoder))
    return train_unet.UnetTask(vae, out / "latents", device, options.seed, executor, compiled=options.compile)


def _metric(name: str) -> BuildTask:
    def build(options: argparse.Namespace, device: torch.device, executor: Executor | None) -> Task:
        return train_metric_nets.TASKS[name](device, options.seed, executor)

    return build


STAGES: dict[str, Stage] = {
    "vae": Stage(_vae, train_vae.CPU_RECIPE, train_vae.GPU_RECIPE),
    "unet": Stage(_unet, train_unet.CPU_RECIPE, train_unet.GPU_RECIPE),
    **{
        name: Stage(_metric(name), train_metric_nets.CPU_RECIPES[name], train_metric_nets.GPU_RECIPES[name])
        for name in train_metric_nets.TASKS
    },
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = build_parser().parse_args(arguments)
    try:
        if options.start:
            started = start.start_from(options.start, options.out)
            print(f"stages {', '.join(started) or '(none)'} go on from {options.start}", flush=True)
        if options.stage == "export" or (train(options) and options.stage == "all"):
            export_model(options.out)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def build_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(prog="python -m dbexp.storybook.pretrain", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints, logs and the exported pipeline")
    parser.add_argument("--stage", choices=[*STAGES, "export", "all"], default="all", help="one, or all in order")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--hours", type=float, default=float("inf"), help="stop, resumable, after this many hours")
    parser.add_argument("--samples", type=int, help="pictures until the stage is finished (default: its recipe)")
    parser.add_argument("--batch", type=int, help="pictures per step (default: its recipe)")
    parser.add_argument("--rate", type=float, default=1.0, help="factor on the recipe's learning rates")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, help="processes that draw (default: 0 with a CPU, cores - 1 with a GPU)")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU (on a busy machine, two are slower than one)")
    parser.add_argument("--compile", action="store_true", help="compile the UNet: minutes first, then a fifth faster")
    parser.add_argument(
        "--peer", type=Path, help="the --out of a second process with another --seed: the two exchange weights"
    )
    parser.add_argument(
        "--from", dest="start", type=Path, help="an exported model that stages without a checkpoint go on from"
    )
    return parser


def train(options: argparse.Namespace) -> bool:
    """Train the chosen stages until they are finished (True) or the time is up (False)."""
    device = choose_device(options.device)
    deadline = time.monotonic() + options.hours * 3600.0
    workers = options.workers
    if workers is None:
        workers = 0 if device.type == "cpu" else max(1, (os.cpu_count() or 2) - 1)
    torch.set_num_threads(options.threads)
    executor = ProcessPoolExecutor(workers) if workers else None
    try:
        for name in STAGES if options.stage == "all" else [options.stage]:
            stage = STAGES[name]
            recipe = stage.cpu if device.type == "cpu" else stage.gpu
            recipe = adjusted(recipe, options)
            task = stage.build(options, device, executor)
            print(f"stage {name}: {recipe} on {device}, {workers} drawing workers", flush=True)
            peer = options.peer / name / CHECKPOINT if options.peer else None
            if not Trainer(task, recipe, options.out / name, device, peer=peer).run(deadline):
                print(f"stage {name}: time is up; the same command goes on from here", flush=True)
                return False
        return True
    finally:
        if executor:
            executor.shutdown(cancel_futures=True)


def adjusted(recipe: Recipe, options: argparse.Namespace) -> Recipe:
    """A stage's recipe with what the command line says of length, batch and learning rates."""
    return replace(
        recipe,
        samples=options.samples or recipe.samples,
        batch=options.batch or recipe.batch,
        lr=recipe.lr * options.rate,
        muon_lr=recipe.muon_lr * options.rate,
    )


def pin_vae(folder: Path, identity: str) -> None:
    """Note whose latents a UNet learns when it starts, and refuse to go on with those of another VAE."""
    note = folder / "vae.sha256"
    if not note.exists():
        folder.mkdir(parents=True, exist_ok=True)
        note.write_text(identity + "\n", encoding="utf-8")
    elif note.read_text(encoding="utf-8").strip() != identity:
        raise ConfigError(
            f"--out: the UNet in {folder} was started on another VAE than the present one, whose latents mean "
            f"something else; remove {folder} to start it again"
        )


def export_model(out: Path) -> None:
    """Write what a pre-training folder holds by now, and a sheet of samples."""
    folder = export.export_pipeline(out, out / "model")
    nets = export.export_metric_nets(out, folder / "metrics")
    sheet = export.sample_sheet(export.build_pipeline(out, torch.device("cpu")), out / "samples.png")
    print(f"{folder}: pipeline and {', '.join(nets) or 'no metric networks'}; samples in {sheet}", flush=True)


def choose_device(wanted: str) -> torch.device:
    """`auto` is a GPU when there is one."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"--device={wanted}: this machine has no CUDA device; use --device=cpu")
    return torch.device(wanted)
