"""Two-stage: valid anchors, selection of proposals, and images with fewer tokens than queries."""

import pytest
import torch
from torch import nn

from projects_deformable_detr import build_criterion, build_detector
from projects_deformable_detr.errors import UserError
from projects_deformable_detr.modeling import batch_images
from projects_deformable_detr.modeling.queries import ProposalQueries, proposal_anchors

CHANNELS = 8


@pytest.fixture
def make_tokens(make_random):
    """``make_tokens(sizes, valid)``; valid: (rows, columns) without padding of each level of each image."""

    def make(sizes, valid):
        images = [[torch.randn(*size, CHANNELS) for size in levels] for levels in valid]
        return make_random.tokens(images, sizes, garbage=1.0)

    return make


def naive_anchors(sizes, levels):
    """Returns the anchors of one image, None for invalid ones."""
    anchors = []
    for level, ((height, width), (rows, columns)) in enumerate(zip(sizes, levels, strict=True)):
        side = 0.05 * 2**level
        for y in range(height):
            for x in range(width):
                box = ((x + 0.5) / columns, (y + 0.5) / rows, side, side)
                inside = y < rows and x < columns and all(0.01 < value < 0.99 for value in box)
                anchors.append(box if inside else None)
    return anchors


def test_masked_tokens_are_invalid(make_tokens):
    tokens = make_tokens([(3, 3)], [[(3, 3)]])
    tokens.padding_mask[0, 4] = True
    assert proposal_anchors(tokens)[1].tolist() == [[index != 4 for index in range(9)]]


class FixedScores(nn.Module):
    """Class head with constant scores (N, S, classes)."""

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
def test_anchors_equal_scalar_reference(make_tokens, case):
    sizes, valid = CASES[case]
    anchors, valid_mask = proposal_anchors(make_tokens(sizes, valid))
    assert anchors.isfinite().all()
    for image, levels in enumerate(valid):
        expected = naive_anchors(sizes, levels)
        assert valid_mask[image].tolist() == [box is not None for box in expected]
        assert 0 < sum(valid_mask[image]) < len(expected)
        for anchor, box in zip(anchors[image].sigmoid(), expected, strict=True):
            torch.testing.assert_close(anchor, torch.tensor(box or (1.0,) * 4))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_best_valid_tokens_are_selected(make_tokens, case, dtype):
    sizes, valid = CASES[case]
    tokens = make_tokens(sizes, valid)
    _, valid_mask = proposal_anchors(tokens)
    # Distinct in half precision, and objectness is that of class 0 alone.
    order = torch.stack([torch.randperm(valid_mask.shape[1]) for _ in valid]).float()
    scores = torch.stack((torch.where(valid_mask, order, 60000.0), -order), dim=-1).to(dtype)
    scores = torch.where(valid_mask[..., None], scores, torch.tensor(float("inf"), dtype=dtype))
    queries = make_queries(4, scores)(tokens.values, tokens)
    for image, levels in enumerate(valid):
        anchors = naive_anchors(sizes, levels)
        best = sorted((i for i, box in enumerate(anchors) if box), key=lambda i: -float(scores[image, i, 0]))[:4]
        torch.testing.assert_close(queries.reference[image], torch.tensor([anchors[index] for index in best]))


def test_best_token_repeats_if_fewer_are_valid_than_queries(make_tokens):
    sizes, valid = [(2, 3)], [[(1, 2)], [(2, 3)]]
    tokens = make_tokens(sizes, valid)
    scores = torch.arange(12.0).view(2, 6, 1)
    queries = make_queries(5, scores)(tokens.values, tokens)
    anchors = naive_anchors(sizes, valid[0])
    expected = [anchors[1], anchors[0], anchors[1], anchors[1], anchors[1]]
    torch.testing.assert_close(queries.reference[0], torch.tensor(expected))
    assert len(queries.reference[1].unique(dim=0)) == 5


def test_references_are_detached_and_proposals_are_not(make_tokens):
    tokens = make_tokens([(3, 3)], [[(3, 3)]])
    queries = ProposalQueries(2, CHANNELS, num_classes=2)(tokens.values, tokens)
    assert not queries.reference.requires_grad
    assert all(tensor.requires_grad for tensor in queries.proposals)


def test_padding_does_not_change_proposals(make_tokens):
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


def test_training_with_fewer_tokens_than_queries(make_cfg, make_random):
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
def test_half_precision_is_finite_with_padding(make_cfg, make_random, shake, dtype):
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
