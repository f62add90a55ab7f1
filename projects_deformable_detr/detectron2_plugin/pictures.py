"""Pictures in Detectron2's event storage (``VIS_PERIOD``)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.utils.events import get_event_storage

from ..inference.drawing import draw_matches
from ..modeling import HungarianMatcher, Predictions, Targets

TITLE = "Left: ground truth; right: matched predictions of the last layer, with the score of the object's class"


def put_matched(
    record: dict[str, Any],
    predictions: Predictions,
    targets: list[Targets],
    matcher: HungarianMatcher,
    input_format: str,
    class_names: Sequence[str] | None = None,
) -> None:
    """Stores a picture of a batch's first image with its matched predictions.

    Args:
        record: first input of the model, with ``image``.
        predictions, targets, matcher, class_names: see `draw_matches`.
        input_format: ``"RGB"`` or ``"BGR"``, the order of the image's channels.
    """
    image = np.asarray(convert_image_to_rgb(record["image"].permute(1, 2, 0), input_format), np.uint8)
    picture = draw_matches(image, predictions, targets, matcher, class_names)
    get_event_storage().put_image(TITLE, picture.transpose(2, 0, 1))
