"""Synthetic scenes in COCO format, for the demo and the tests."""
