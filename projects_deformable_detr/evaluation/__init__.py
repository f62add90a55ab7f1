"""COCO, LVIS and panoptic evaluation, shared by both engines."""
