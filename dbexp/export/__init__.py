"""The command `dbexp-export`: a run's LoRA for other programs, and a folder that is ready for the hub.

`settings` says what may be asked for, `check` draws the same pictures with stock diffusers and each written file,
`card` writes the README (pure), `hub` uploads, `command` tells the story in order.
"""
