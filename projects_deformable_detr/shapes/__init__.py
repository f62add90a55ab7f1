"""Synthetic demo data set: shapes in COCO's instances and panoptic formats."""
