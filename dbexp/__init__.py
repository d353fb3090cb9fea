"""dbexp: DreamBooth-LoRA experiments as Hydra sweeps.

In Python, and so in notebooks, the same as on the command line:

    cfg = dbexp.compose(["model=sd15", "dataset=dog3", "lora.rank=32"])
    run = dbexp.run(cfg)
    sweep = dbexp.sweep(["lora.rank=4,16", "seed=1,2,3"])
    sweep.results, sweep.effects, sweep.statements
    table = dbexp.load_results("multirun/2026-11-22/10-00-00")
    pictures = dbexp.load_pictures("multirun/2026-11-22/10-00-00", "dino")
    gain = dbexp.effect(pictures, "lora.rank", 4, 16)
    advice = dbexp.recommend("multirun/2026-11-22/10-00-00")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dbexp.api import (
        Sweep,
        compose,
        load_effects,
        load_pictures,
        load_recommendation,
        load_results,
        recommend,
        run,
        sweep,
    )
    from dbexp.compare.inference.effect import effect

__version__ = "0.1.0"
__all__ = [
    "Sweep",
    "__version__",
    "compose",
    "effect",
    "load_effects",
    "load_pictures",
    "load_recommendation",
    "load_results",
    "recommend",
    "run",
    "sweep",
]


def __getattr__(name: str) -> Any:
    """Import a function when it is first asked for: `import dbexp` alone costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module 'dbexp' has no attribute {name!r}")
    return getattr(import_module("dbexp.compare.inference.effect" if name == "effect" else "dbexp.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
