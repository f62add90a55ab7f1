"""Proposals: what may be chosen, what is chosen, and images with fewer tokens than queries."""

import pytest
import torch
from torch import nn

from projects_deformable_detr import build_criterion, build_detector
from projects_deformable_detr.errors import UserError
from projects_deformable_detr.modeling import batch_images
from projects_deformable_detr.modeling.queries import ProposalQueries, proposal_anchors
from projects_deformable_detr.modeling.structures import Tokens

CHANNELS = 8


def make_tokens(sizes, valid):
    """Tokens of len(valid) images; valid: for each image the (rows, columns) that are image, level by level."""
    masks, ratios = [], []
    for level, (height, width) in enumerate(sizes):
        mask = torch.ones(len(valid), height, width, dtype=torch.bool)
        for image, levels in enumerate(valid):
            mask[image, : levels[level][0], : levels[level][1]] = False
        masks.append(mask.flatten(1))
        ratios.append(torch.tensor([[levels[level][1] / width, levels[level][0] / height] for levels in valid]))
    mask = torch.cat(masks, 1)
    values = torch.randn(*mask.shape, CHANNELS)
    return Tokens(values, values, mask, tuple(sizes), torch.stack(ratios, 1))


def naive_anchors(sizes, levels):
    """[(box or None where it may not be chosen)] of one image."""
    anchors = []
    for level, ((height, width), (rows, columns)) in enumerate(zip(sizes, levels, strict=True)):
        side = 0.05 * 2**level
        for y in range(height):
            for x in range(width):
                box = ((x + 0.5) / columns, (y + 0.5) / rows, side, side)
                inside = y < rows and x < columns and all(0.01 < value < 0.99 for value in box)
                anchors.append(box if inside else None)
    return anchors


def test_what_the_mask_hides_is_not_usable_wherever_it_lies():
    tokens = make_tokens([(3, 3)], [[(3, 3)]])
    tokens.padding_mask[0, 4] = True
    assert proposal_anchors(tokens)[1].tolist() == [[index != 4 for index in range(9)]]


class FixedScores(nn.Module):
    """A class head with scores (N, S, classes) of the test's own."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def forward(self, x):
        return self.scores.to(x.dtype)


def make_queries(count, scores):
    queries = ProposalQueries(count, CHANNELS, num_classes=1)
    queries.class_head = FixedScores(scores)
    return queries


# The first has a column at the border (0.5 / 60 < 0.01) and padding; the second a level whose anchors are too large.
CASES = {
    "border": ([(2, 60), (1, 30)], [[(2, 60), (1, 30)], [(1, 40), (1, 20)]]),
    "six_levels": ([(2, 2)] * 6, [[(2, 2)] * 6, [(1, 2)] * 6]),
}


@pytest.mark.parametrize("case", CASES)
def test_anchors_equal_a_plain_loop(case):
    sizes, valid = CASES[case]
    anchors, usable = proposal_anchors(make_tokens(sizes, valid))
    assert anchors.isfinite().all()
    for image, levels in enumerate(valid):
        expected = naive_anchors(sizes, levels)
        assert usable[image].tolist() == [box is not None for box in expected]
        assert 0 < sum(usable[image]) < len(expected)
        for anchor, box in zip(anchors[image].sigmoid(), expected, strict=True):
            torch.testing.assert_close(anchor, torch.tensor(box or (1.0,) * 4))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_best_usable_tokens_are_chosen_whatever_the_others_score(case, dtype):
    sizes, valid = CASES[case]
    tokens = make_tokens(sizes, valid)
    _, usable = proposal_anchors(tokens)
    # Distinct in half precision, and objectness is that of class 0 alone.
    order = torch.stack([torch.randperm(usable.shape[1]) for _ in valid]).float()
    scores = torch.stack((torch.where(usable, order, 60000.0), -order), dim=-1).to(dtype)
    scores = torch.where(usable[..., None], scores, torch.tensor(float("inf"), dtype=dtype))
    queries = make_queries(4, scores)(tokens.values, tokens)
    for image, levels in enumerate(valid):
        anchors = naive_anchors(sizes, levels)
        best = sorted((i for i, box in enumerate(anchors) if box), key=lambda i: -float(scores[image, i, 0]))[:4]
        torch.testing.assert_close(queries.reference[image], torch.tensor([anchors[index] for index in best]))


def test_fewer_usable_tokens_than_queries_repeat_the_best():
    sizes, valid = [(2, 3)], [[(1, 2)], [(2, 3)]]
    tokens = make_tokens(sizes, valid)
    scores = torch.arange(12.0).view(2, 6, 1)
    queries = make_queries(5, scores)(tokens.values, tokens)
    anchors = naive_anchors(sizes, valid[0])
    expected = [anchors[1], anchors[0], anchors[1], anchors[1], anchors[1]]
    torch.testing.assert_close(queries.reference[0], torch.tensor(expected))
    assert len(queries.reference[1].unique(dim=0)) == 5


def test_fewer_tokens_than_queries_give_fewer_queries():
    tokens = make_tokens([(2, 2), (1, 1)], [[(2, 2), (1, 1)]])
    queries = make_queries(9, torch.randn(1, 5, 3))(tokens.values, tokens)
    assert queries.reference.shape == (1, 5, 4) and queries.content.shape == (1, 5, CHANNELS)


def test_references_carry_no_gradient_but_proposals_do():
    tokens = make_tokens([(3, 3)], [[(3, 3)]])
    queries = ProposalQueries(2, CHANNELS, num_classes=2)(tokens.values, tokens)
    assert not queries.reference.requires_grad
    assert all(tensor.requires_grad for tensor in queries.proposals)


def test_what_padded_tokens_hold_does_not_reach_proposals():
    tokens = make_tokens([(3, 4)], [[(2, 3)]])
    queries = ProposalQueries(3, CHANNELS, num_classes=2)
    garbage = tokens.values.masked_fill(tokens.padding_mask[..., None], float("nan"))
    one, other = queries(tokens.values, tokens), queries(garbage, tokens)
    for a, b in (
        (one.reference, other.reference),
        (one.content, other.content),
        (one.proposals[0], other.proposals[0]),
        (one.proposals[1], other.proposals[1]),
    ):
        assert torch.equal(a, b)


def test_a_tiny_image_trains(make_cfg, make_random):
    cfg = make_cfg("two_stage", NUM_OBJECT_QUERIES=50, NUM_FEATURE_LEVELS=3)
    detector = build_detector(cfg)
    images, mask = batch_images([torch.randn(3, 17, 20), torch.randn(3, 9, 30)])
    predictions = detector(images, mask)
    tokens = 3 * 4 + 2 * 2 + 1 * 1
    assert predictions.logits.shape == (3, 2, tokens, 5)
    assert predictions.proposals[0].shape == (2, tokens, 5)
    losses = build_criterion(cfg)(predictions, make_random.targets((2, 1), classes=5))
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in detector.parameters())
    with pytest.raises(UserError, match=f"image 0 .*{tokens + 1} ground-truth boxes.* there are {tokens} queries"):
        build_criterion(cfg)(predictions, make_random.targets((tokens + 1, 1), classes=5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_autocast_is_finite_with_padding(make_cfg, make_random, shake, dtype):
    cfg = make_cfg("two_stage")
    detector = shake(build_detector(cfg), 0.02)
    images, mask = batch_images([torch.randn(3, 64, 64), torch.randn(3, 40, 96)])
    with torch.autocast("cpu", dtype):
        predictions = detector(images, mask)
        losses = build_criterion(cfg)(predictions, make_random.targets((2, 3), classes=5))
    tensors = [predictions.logits, predictions.boxes, *predictions.proposals, *losses.values()]
    assert all(tensor.isfinite().all() for tensor in tensors)
    assert predictions.logits.dtype == dtype  # autocast was on
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in detector.parameters())
