"""``python -m router``: the command line, where the `fednode` script is not on the path."""

import sys

from router.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
