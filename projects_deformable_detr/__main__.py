"""Runs the console script ``deformable-detr``."""

import sys

from .cli.main import console

if __name__ == "__main__":
    sys.exit(console())
