"""Gradient norms of predictions with respect to the input pixels (arXiv 2010.04159, appendix A.5 and figure 5)."""

import torch
from torch import Tensor

from ..modeling import Predictions

GRADIENTS = ("center", "size", "score")


def input_gradients(predictions: Predictions, images: Tensor, queries: Tensor, labels: Tensor) -> Tensor:
    """Computes gradient norms of the last layer's box center, box size and class score for each input pixel.

    The norm is over the color channels and, for center and size, over both coordinates, which are normalized by the
    image. As in training, references of refined boxes and proposals are detached. ``torch.autograd.grad`` is used
    directly: captum's saliency is the same call, and would repeat the forward pass for each of the five outputs.

    Args:
        predictions: predictions of one image, computed with gradients.
        images: (1, 3, h, w), input of the detector, a leaf that requires gradients.
        queries, labels: (D,) int64, query and class of each detection.

    Returns:
        (D, 3, h, w) float32 in the order of `GRADIENTS`, >= 0.
    """
    boxes, scores = predictions.boxes[-1, 0], predictions.scores()[0]
    maps = images.new_zeros(len(queries), len(GRADIENTS), *images.shape[-2:])
    for index, (query, label) in enumerate(zip(queries.tolist(), labels.tolist(), strict=True)):
        for part, outputs in enumerate((boxes[query, :2], boxes[query, 2:], scores[query, label][None])):
            gradients = [torch.autograd.grad(output, images, retain_graph=True)[0] for output in outputs]
            maps[index, part] = torch.cat(gradients).norm(dim=(0, 1))
    return maps
