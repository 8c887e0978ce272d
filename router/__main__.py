"""``python -m router`` and the `fednode` script: the command line."""

import signal
import sys


def main() -> int:
    """Run one command; return its exit status."""
    if "run" in sys.argv[1:]:  # before the imports below: a reload asked for so early must not end the daemon
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    from router.cli.app import main as command_line  # noqa: PLC0415  # see above

    return command_line()


if __name__ == "__main__":
    sys.exit(main())
