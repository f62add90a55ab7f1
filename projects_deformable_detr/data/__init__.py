"""Data sets in COCO instances, COCO panoptic and LVIS formats: catalog, checks, records, masks and image reading."""
