"""The command `dbexp-generate`: images from runs, in a grid of prompts against runs and LoRA scales.

`settings` says what may be asked for, `grid` lays out every image, `command` tells the story in order; the engine that
draws is `dbexp.sample.draw`.
"""
