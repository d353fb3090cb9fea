"""A training step of the built-in model by the code of several checkouts, in turn: seconds of the processor.

    git worktree add ../before COMMIT
    OMP_NUM_THREADS=1 python benchmarks/paired_step.py --rounds 5 ../before .

Each round runs every checkout in a process of its own, one after the other. Ratios are what counts: on a machine that
others use, a second of the processor does more or less from minute to minute.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does: spinning threads would measure themselves

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SETTINGS = ("model.device=cpu", "dataset.path=nowhere", "lora.sites=attention", "lora.rank=16", "lr_schedule=constant")
"""Whatever defaults have changed between the checkouts."""
WARM = 4
"""Steps that are not counted: what is set up at first."""


def measure(folder: Path, lanes: int, steps: int) -> dict[str, float]:
    """Seconds of the processor for a step of so many lanes, by the package that is imported: median and least."""
    import numpy as np
    from PIL import Image

    from dbexp import api, models
    from dbexp.core.store import Store
    from dbexp.pipeline.requests import training_request
    from dbexp.train import memory

    rng = np.random.default_rng(0)
    paths = tuple(folder / f"{number}.png" for number in range(8))
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    config = api.compose([*SETTINGS, f"train.steps={WARM + steps + 1}"])
    store = Store(folder / "store")
    training = training_request(config, paths[:4], "a photo of sks dog", paths[4:])
    taken = []
    with memory.copies(training, lanes, models.load(config.model, store), store) as loop:
        for _ in range(WARM + steps):
            begun = time.process_time()
            loop.microbatch()
            taken.append(time.process_time() - begun)
    return {"median": statistics.median(taken[WARM:]), "least": min(taken[WARM:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", type=Path, nargs="*", help="checkouts; the first is what others are compared with")
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(Path(folder), arguments.measure, arguments.steps)))
        return
    for lanes in arguments.lanes:
        seconds: dict[Path, list[dict[str, float]]] = {tree: [] for tree in arguments.trees}
        for _ in range(arguments.rounds):
            for tree in arguments.trees:
                command = [sys.executable, __file__, "--measure", str(lanes), "--steps", str(arguments.steps)]
                environment = {**os.environ, "PYTHONPATH": str(tree.resolve())}
                out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
                seconds[tree].append(json.loads(out.splitlines()[-1]))
        first = arguments.trees[0]
        for tree, rounds in seconds.items():
            told = [f"{1e3 * each['median']:.1f}" for each in rounds]
            ratio = statistics.median(
                one["median"] / other["median"] for one, other in zip(rounds, seconds[first], strict=True)
            )
            least = min(each["least"] for each in rounds)
            print(f"{lanes} lanes, {tree}: medians {', '.join(told)} ms; least {1e3 * least:.1f}; ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
