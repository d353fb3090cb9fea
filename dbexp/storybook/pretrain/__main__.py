"""`python -m dbexp.storybook.pretrain`: make the built-in weights again."""

import sys

from dbexp.storybook.pretrain.pretrain import main

if __name__ == "__main__":
    sys.exit(main())
