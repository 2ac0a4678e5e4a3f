"""The command line: read arguments, call one stage, print."""

from streamfluence.cli.commands import main

__all__ = ["main"]
