"""A test set, and detections with one error of each kind above the threshold with the best F1."""

CLASSES = {3: "<b>cat</b>", 7: "dog & $x$"}  # names that HTML and matplotlib could interpret
BOX, SHIFTED, NEAR = [10, 10, 40, 40], [35, 10, 40, 40], [12, 10, 40, 40]  # IoU with BOX: 1, 0.23, 0.90
OTHER, OTHER_SHIFTED = [100, 60, 40, 40], [115, 85, 40, 40]  # IoU 0.13
CORRECT = range(5, 15)  # images with one object and its detection
# (image, category, box, crowd)
OBJECTS = [
    (1, 3, BOX, 0),
    (1, 7, OTHER, 0),
    (2, 3, BOX, 0),
    (2, 7, OTHER, 0),
    (4, 3, BOX, 1),
    *((image, 3 if image % 2 else 7, BOX, 0) for image in CORRECT),
]
# (image, category, box, score, kind of error, or None)
DETECTIONS = [
    (1, 3, BOX, 0.95, None),
    (1, 3, NEAR, 0.85, "Dupe"),
    (1, 3, OTHER, 0.90, "Cls"),
    (2, 3, SHIFTED, 0.80, "Loc"),
    (2, 3, OTHER_SHIFTED, 0.75, "Both"),
    (3, 7, OTHER, 0.70, "Bkg"),
    (4, 3, BOX, 0.65, None),  # on a crowd: not counted
    *((image, 3 if image % 2 else 7, BOX, 0.25, None) for image in CORRECT),
    (3, 7, BOX, 0.01, "Bkg"),  # below the suggested threshold
]
