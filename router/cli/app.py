"""The command `fednode`: who is called for which word, and how a failure ends."""

import sys
from typing import Annotated

import typer

from router.cli import init, keys, run, settings_file, show, sim, up, watchers
from router.cli.faults import INTERRUPTED, report
from router.cli.where import ConfigOption
