"""The command `dbexp-generate`: pictures from runs, in a grid of prompts against runs and LoRA scales.

`settings` says what may be asked for, `runs` finds what was trained, `grid` lays out every picture (pure), `draw` draws
what is not there yet, `command` tells the story in order.
"""
