"""The command `dbexp-export`: a run's LoRA for other programs, and a folder that is ready for the hub.

`settings` says what may be asked for, `formats` what can be written, `compare` draws the same images with stock
diffusers and each written file, `card` writes the README (pure) and `images` what it shows, `hub` looks up the base
model and uploads, `command` tells the story in order.
"""
