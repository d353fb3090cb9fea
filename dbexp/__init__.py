"""dbexp: DreamBooth-LoRA experiments as Hydra sweeps."""

__version__ = "0.1.0"
