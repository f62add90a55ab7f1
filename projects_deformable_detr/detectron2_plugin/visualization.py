"""Images in the event storage (``VIS_PERIOD``): ground truth next to the matched predictions."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.utils.events import get_event_storage
from detectron2.utils.visualizer import Visualizer
from torchvision.ops import box_convert

from ..modeling import HungarianMatcher, Predictions, Targets

TITLE = "Left: ground truth; right: matched predictions of the last layer, with the score of the object's class"


@torch.no_grad()
def put_matched_predictions(
    record: dict[str, Any],
    predictions: Predictions,
    targets: list[Targets],
    matcher: HungarianMatcher,
    input_format: str,
    class_names: Sequence[str] | None = None,
) -> None:
    """Adds a visualization of the first image of a batch to the event storage.

    Args:
        record: first input of the model, with ``image`` (3, H, W).
        predictions, targets: predictions and ground truth of the batch.
        matcher: matcher of the criterion.
        input_format: ``"RGB"`` or ``"BGR"``, the order of the image's channels.
        class_names: class names, indexed by class id; None: the ids are written.
    """
    last = replace(
        predictions, logits=predictions.logits[-1:], boxes=predictions.boxes[-1:], proposals=None, masks=None
    )
    match, _ = matcher(last, targets)
    first = match.image == 0
    query, target = match.query[0, first], match.target[0, first]
    labels = targets[0].labels[target]
    scores = last.scores()[0][query, labels].tolist()
    names = [class_names[label] if class_names else str(label) for label in labels.tolist()]

    image = convert_image_to_rgb(record["image"].permute(1, 2, 0), input_format)
    height, width = image.shape[:2]
    scale = targets[0].boxes.new_tensor([width, height, width, height])
    sides = (
        (targets[0].boxes[target], names),
        (last.boxes[0, 0, query], [f"{name} {score:.0%}" for name, score in zip(names, scores, strict=True)]),
    )
    images = []
    for boxes, texts in sides:
        corners = box_convert(boxes.float() * scale, "cxcywh", "xyxy").cpu().numpy()
        images.append(Visualizer(image).overlay_instances(boxes=corners, labels=texts).get_image())
    get_event_storage().put_image(TITLE, np.concatenate(images, axis=1).transpose(2, 0, 1))
