"""Detection in images: `Detector`, `Detections`, drawing."""
