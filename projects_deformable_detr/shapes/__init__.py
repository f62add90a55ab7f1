"""Synthetic demo data set: shapes in COCO instances and panoptic formats."""
