"""Command line: ``python -m projects_deformable_detr.shapes``."""

from .dataset import main

main()
