"""Data sets in COCO's, LVIS's and panoptic formats: catalog, checks, records, masks and image reading."""
