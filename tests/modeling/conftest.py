"""Random inputs, and scalar reference implementations of the matching cost."""

import math
from collections.abc import Callable, Sequence
from itertools import permutations
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from projects_deformable_detr.modeling import Predictions, Targets
from projects_deformable_detr.modeling.position_encoding import SinePositionEmbedding
from projects_deformable_detr.modeling.structures import Tokens


def random_boxes(*shape: int) -> Tensor:
    """Returns random boxes (…, 4) as (cx, cy, w, h) inside the image."""
    return torch.cat((0.3 + 0.4 * torch.rand(*shape, 2), 0.05 + 0.5 * torch.rand(*shape, 2)), dim=-1)


def random_targets(sizes: Sequence[int], classes: int) -> list[Targets]:
    return [Targets(torch.randint(classes, (size,)), random_boxes(size)) for size in sizes]


def random_predictions(
    layers: int = 3, batch: int = 2, queries: int = 5, classes: int = 4, proposals: int = 0
) -> Predictions:
    encoder = (torch.randn(batch, proposals, classes), random_boxes(batch, proposals)) if proposals else None
    return Predictions(torch.randn(layers, batch, queries, classes), random_boxes(layers, batch, queries), encoder)


def giou(a: Sequence[float], b: Sequence[float]) -> float:
    """Computes the generalized IoU (arXiv 1902.09630) of two boxes (cx, cy, w, h)."""
    ax, ay, aw, ah = a
    bx, by, bw, bh = b
    lefts, rights = (ax - aw / 2, bx - bw / 2), (ax + aw / 2, bx + bw / 2)
    tops, bottoms = (ay - ah / 2, by - bh / 2), (ay + ah / 2, by + bh / 2)
    shared = max(min(rights) - max(lefts), 0) * max(min(bottoms) - max(tops), 0)
    union = aw * ah + bw * bh - shared
    hull = (max(rights) - min(lefts)) * (max(bottoms) - min(tops))
    return shared / union - (hull - union) / hull


def focal_terms(logit: float, alpha: float, gamma: float) -> tuple[float, float]:
    """Computes the focal loss of a positive and of a negative (arXiv 1708.02002, eq. 5)."""
    p = 1 / (1 + math.exp(-logit))
    return -alpha * (1 - p) ** gamma * math.log(p), -(1 - alpha) * p**gamma * math.log(1 - p)


def cost_matrix(
    logits: Tensor, boxes: Tensor, target: Targets, alpha: float, gamma: float, weights: Sequence[float]
) -> list[list[float]]:
    """Computes costs [query][target] of logits (Q, C) and boxes (Q, 4); weights of class, L1 and GIoU."""
    rows = []
    for scores, box in zip(logits.double().tolist(), boxes.double().tolist(), strict=True):
        row = []
        for label, wanted in zip(target.labels.tolist(), target.boxes.double().tolist(), strict=True):
            positive, negative = focal_terms(scores[label], alpha, gamma)
            distance = sum(abs(x - y) for x, y in zip(box, wanted, strict=True))
            row.append(weights[0] * (positive - negative) + weights[1] * distance - weights[2] * giou(box, wanted))
        rows.append(row)
    return rows


def cheapest(costs: list[list[float]]) -> list[int]:
    """Returns the query of every target in the cheapest of all assignments."""
    count = len(costs[0]) if costs else 0
    return list(
        min(
            permutations(range(len(costs)), count),
            key=lambda chosen: sum(costs[query][target] for target, query in enumerate(chosen)),
        )
    )


def make_tokens(images: Sequence[Sequence[Tensor]], sizes: Sequence[tuple[int, int]], garbage: float = 0.0) -> Tokens:
    """Builds tokens of images, lists of level values (h, w, C), in levels of ``sizes`` with garbage on padding."""
    levels = []
    for level, (height, width) in enumerate(sizes):
        channels = images[0][level].shape[-1]
        mask = torch.ones(len(images), height, width, dtype=torch.bool)
        value = torch.full((len(images), height, width, channels), garbage)
        for index, image in enumerate(images):
            h, w = image[level].shape[:2]
            mask[index, :h, :w] = False
            value[index, :h, :w] = image[level]
        embedding = SinePositionEmbedding(channels)(mask).permute(0, 2, 3, 1) + level
        position = torch.where(mask[..., None], garbage, embedding)
        ratio = torch.tensor([[image[level].shape[1] / width, image[level].shape[0] / height] for image in images])
        levels.append((value.flatten(1, 2), position.flatten(1, 2), mask.flatten(1), ratio[:, None]))
    values, positions, masks, ratios = (torch.cat(parts, 1) for parts in zip(*levels, strict=True))
    return Tokens(values, positions, masks, tuple(sizes), ratios)


@pytest.fixture(scope="session")
def naive() -> SimpleNamespace:
    return SimpleNamespace(giou=giou, focal_terms=focal_terms, cost_matrix=cost_matrix, cheapest=cheapest)


@pytest.fixture(scope="session")
def make_random() -> SimpleNamespace:
    return SimpleNamespace(
        boxes=random_boxes, targets=random_targets, predictions=random_predictions, tokens=make_tokens
    )


@pytest.fixture
def shake() -> Callable[[nn.Module], nn.Module]:
    """Adds noise to all parameters: zero initial weights would hide errors in what they multiply."""

    def add_noise(module: nn.Module, scale: float = 0.1) -> nn.Module:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += scale * torch.randn_like(parameter)
        return module

    return add_noise
