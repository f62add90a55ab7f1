"""Data sets in COCO's format: their registry, their checks, their images, and a generator of one."""
