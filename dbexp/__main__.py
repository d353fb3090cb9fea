"""`python -m dbexp`: the command `dbexp`, for torchrun and for schedulers."""

from dbexp.pipeline.command import main

if __name__ == "__main__":
    main()
