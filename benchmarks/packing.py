"""Eight runs trained together against the same eight one after the other, on random weights of a small model's size.

    python benchmarks/packing.py --steps 30 --repeats 3

Both ways are measured in one process, in turn, and the ratio is what counts: absolute times drift with the machine.
Only the training loop is timed; encoding is done and cached before. Losses of the two ways are compared as well.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does: spinning threads would measure themselves

import argparse
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dbexp.config.schema import Config, DatasetConfig, LoraConfig, ModelConfig, PriorConfig, SeedsConfig, TrainConfig
from dbexp.core import provenance
from dbexp.core.store import Store
from dbexp.models import load, random_weights
from dbexp.pipeline.requests import training_request
from dbexp.train.result import Trained
from dbexp.train.train import train

# about the size of a model that a laptop can train: 16 x 16 latents of 64 px, attention at every resolution
SIZE = random_weights.Size(
    (32, 64, 96), (64, 128, 192), (True, True, True), 1, 8, text_width=192, text_layers=4, text_heads=4, max_tokens=32,
    resolution=64,
)  # fmt: skip


def pictures(folder: Path, count: int, seed: int) -> tuple[Path, ...]:
    """Square random pictures of 64 px."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    paths = tuple(folder / f"{number}.png" for number in range(count))
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lanes", type=int, default=8)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prior", type=float, default=1.0, help="prior weight; 0: one row a lane instead of two")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        weights = random_weights.build(scratch / "weights", SIZE)
        photos, classes = pictures(scratch / "photos", 5, 0), pictures(scratch / "class", 16, 1)
        config = Config(
            model=ModelConfig(name="random", path=str(weights), resolution=64),
            dataset=DatasetConfig(name="noise", path="unused", class_noun="dog", live=True),
            prior=PriorConfig(weight=arguments.prior),
            train=TrainConfig(steps=arguments.steps, checkpoint_every=0),
        )
        trainings = []
        for lane in range(arguments.lanes):
            changed = replace(
                config,
                lora=LoraConfig(rank=(4, 8, 16, 16)[lane % 4]),
                train=replace(config.train, lr=(1e-4, 3e-4, 1e-3)[lane % 3]),
                seeds=SeedsConfig(init=lane, data=lane, noise=lane),
            )
            trainings.append(
                training_request(changed, photos, "a photo of sks dog", classes if arguments.prior else ())
            )
        model = load(config.model, Store(scratch / "store"))
        train(trainings[:1], model, Store(scratch / "warm"))

        ratios, packed_seconds, solo_seconds, difference = [], [], [], 0.0
        for repeat in range(arguments.repeats):
            store = Store(scratch / f"packed{repeat}")
            packed = [result for result in train(trainings, model, store) if isinstance(result, Trained)]
            store = Store(scratch / f"solo{repeat}")
            alone = [train([training], model, store)[0] for training in trainings]
            solo = [result for result in alone if isinstance(result, Trained)]
            packed_seconds.append(max(result.record["seconds"] for result in packed))
            solo_seconds.append(sum(result.record["seconds"] for result in solo))
            ratios.append(solo_seconds[-1] / packed_seconds[-1])
            for in_pack, by_itself in zip(packed, solo, strict=True):
                for a, b in zip(in_pack.history, by_itself.history, strict=True):
                    difference = max(difference, abs(a["loss"] / b["loss"] - 1))
        summary = {
            "lanes": arguments.lanes,
            "steps": arguments.steps,
            "rows_per_lane": 2 if arguments.prior else 1,
            "threads": arguments.threads,
            "denoiser_parameters": sum(
                parameter.numel() for parameter in model.part(model.family.denoiser).parameters()
            ),
            "solo_over_packed": [round(ratio, 2) for ratio in ratios],
            "solo_over_packed_median": round(statistics.median(ratios), 2),
            "packed_seconds": [round(seconds, 2) for seconds in packed_seconds],
            "solo_seconds": [round(seconds, 2) for seconds in solo_seconds],
            "largest_relative_loss_difference": difference,
            "provenance": provenance.collect(model.device),
        }
        print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
