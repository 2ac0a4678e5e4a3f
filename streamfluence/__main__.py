"""``python -m streamfluence`` is the command ``streamfluence``."""

from streamfluence.cli import main

main()
