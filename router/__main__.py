"""``python -m router``: the command line, where the `fednode` script is not on the path."""

import signal
import sys

if __name__ == "__main__":
    if "run" in sys.argv[1:]:  # before the imports below: a reload asked for so early must not end the daemon
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    from router.cli.app import main

    sys.exit(main())
