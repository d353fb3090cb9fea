"""What `dbexp-estimate` says beside what others published: a table for a dated report. Nothing here is measured.

python benchmarks/estimate.py
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import replace
from pathlib import Path

from dbexp import api
from dbexp.estimate.cards import CARDS, GIB, Card
from dbexp.estimate.estimate import RESERVED
from dbexp.estimate.measure import Measure
from dbexp.estimate.roofline import seconds

L40S = Card("L40S", 48 * GIB, 362, 91.6, 864, (8, 9))
CASES = (
    ("sd15", "512", None, True, "about 4 GB, and on cards of 6 GB (kohya users)", None),
    ("sdxl", "1024", None, True, "under 16 GB with 8-bit Adam (diffusers); 8 to 12 GB (kohya, OneTrainer users)", None),
    ("flux2_klein_4b", "1024", None, True, "12 GB in bf16 (SimpleTuner's estimate)", None),
    ("flux2_klein_4b", "1024", "fp8", True, "8 GB in int8 (SimpleTuner's estimate)", None),
    ("flux2_klein_9b", "1024", None, True, "22 GB in bf16 (SimpleTuner's estimate)", None),
    ("flux2_klein_9b", "1024", "fp8", True, "14 GB in int8 (SimpleTuner's estimate)", None),
    ("z_image", "1024", None, True, "32 to 40 GB in bf16 (SimpleTuner)", None),
    ("z_image", "512", None, True, "20 GB in bf16, rank 16 (an OneTrainer user, size not said)", None),
    ("z_image", "1024", "fp8", True, "16 to 24 GB; 9.7 GiB (SimpleTuner, int8)", 1.09),
    ("z_image", "1024", "nf4", True, "10 to 12 GB (SimpleTuner)", None),
)


def main() -> None:
    logging.disable(logging.WARNING)
    print("| model | pixels | weights | GiB here | published | s/step H100 | published | s/step L40S | s/step 4090 |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        measure = Measure(Path(folder), CARDS["h100"])
        for name, side, quantize, checkpointing, published, time in CASES:
            words = [f"model={name}", f"model.resolution={side}", "prior.weight=0", "lora.rank=16"]
            words += [f"train.gradient_checkpointing={str(checkpointing).lower()}", "model.precision=bf16"]
            config = api.compose(words)
            config = replace(config, model=replace(config.model, quantize=quantize))
            count = measure.training(config, 1)
            times = [f"{seconds(count.operations, card):.2f}" for card in (CARDS["h100"], L40S, CARDS["4090"])]
            memory = f"{(count.peak + RESERVED) / GIB:.1f}"
            cells = [name, side, quantize or "bf16", memory, published, times[0], str(time or ""), *times[1:]]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
