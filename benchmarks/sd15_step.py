"""Time and memory of a few training steps on random weights of Stable Diffusion 1.5's true size, at 512 x 512.

    python benchmarks/sd15_step.py reference/diffusers/with_prior --steps 3 --photos FOLDER

Random weights cost exactly what trained ones cost, so this needs no download. Class images are random pictures, since
drawing real ones is not what is measured. One process measures one preset: peak memory is the process's.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir
from PIL import Image

from dbexp import models
from dbexp.config import check, groups, help, template
from dbexp.core import provenance
from dbexp.core.images import image_files
from dbexp.core.store import Store
from dbexp.models import random_weights
from dbexp.pipeline.requests import training_request
from dbexp.train.train import train


def noise_pictures(folder: Path, count: int, seed: int) -> tuple[Path, ...]:
    """Square random pictures of 512 px."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        path = folder / f"{number:03d}.png"
        Image.fromarray(rng.integers(0, 256, (512, 512, 3), dtype=np.uint8)).save(path)
        paths.append(path)
    return tuple(paths)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", help="preset, such as reference/diffusers/with_prior")
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps")
    parser.add_argument("--photos", type=Path, help="folder of the subject's pictures; default: random pictures")
    parser.add_argument("--class-images", type=int, default=2)
    parser.add_argument("--lanes", type=int, default=1, help="runs trained together, differing in seed")
    parser.add_argument("--store", type=Path, help="where weights are kept; default: a temporary folder")
    parser.add_argument("overrides", nargs="*", help="further settings, such as model.precision=bf16")
    arguments = parser.parse_intermixed_args()

    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        store = Store(arguments.store or scratch / "store")
        size = random_weights.SD15
        inputs = {"version": random_weights.VERSION, "size": size.to_json(), "seed": 0}
        weights = store.get("model", inputs, lambda folder: random_weights.build(folder, size) and None)
        photos = tuple(image_files(arguments.photos)) if arguments.photos else noise_pictures(scratch / "photos", 5, 0)
        pictures = noise_pictures(scratch / "class", arguments.class_images, 1)

        help.register()
        configs = []
        with initialize_config_dir(str(groups.conf_dir()), version_base="1.3"):
            for lane in range(arguments.lanes):
                config = check.check(
                    compose(
                        "config",
                        overrides=[
                            f"experiment={arguments.experiment}",
                            f"model.path={weights}",
                            f"train.steps={arguments.steps}",
                            f"seed={lane}",
                            *arguments.overrides,
                        ],
                    )
                )
                configs.append(config)
        trainings = [
            training_request(
                config,
                photos,
                template.fill(config.dataset.prompt, config.dataset),
                pictures if config.prior.weight else (),
            )
            for config in configs
        ]
        model = models.load(configs[0].model, store)
        started = time.perf_counter()
        # a store of its own for the result, or a second call would find it
        results = train(trainings, model, Store(scratch / "results"))
        whole = time.perf_counter() - started
        record = []
        for result in results:
            if isinstance(result, Exception):
                raise result
            record.append(result)
        seconds = record[0].record["seconds"]
        first = configs[0]
        summary = {
            "experiment": arguments.experiment,
            "overrides": arguments.overrides,
            "lanes": arguments.lanes,
            "resolution": first.model.resolution,
            "precision": str(model.dtype).removeprefix("torch."),
            "optimizer_steps": arguments.steps,
            "forward_passes_per_step": first.train.grad_accum,
            "rows_per_forward": arguments.lanes * first.train.batch_size * (2 if first.prior.weight > 0 else 1),
            "seconds_per_optimizer_step": round(seconds / arguments.steps, 2),
            "seconds_with_encoding": round(whole, 1),
            "parameters": record[0].record["parameters"],
            "losses": [[round(row["loss"], 5) for row in result.history] for result in record],
            "memory": provenance.peak_memory(model.device),
            "provenance": provenance.collect(model.device),
        }
        print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
