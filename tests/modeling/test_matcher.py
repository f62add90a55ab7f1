"""The Hungarian matcher against all permutations."""

import math

import pytest
import torch

from projects_deformable_detr.errors import ArgumentError, UserError
from projects_deformable_detr.modeling import HungarianMatcher, Targets
from projects_deformable_detr.modeling.losses import FocalClassification

ALPHA, GAMMA, WEIGHTS = 0.25, 2.0, (2.0, 5.0, 2.0)


@pytest.fixture
def matcher():
    return HungarianMatcher(FocalClassification(ALPHA, GAMMA), *WEIGHTS)


def pairs(match, sizes, layer):
    """Returns {(image, target within the image): query} of one layer."""
    starts = [sum(sizes[:image]) for image in range(len(sizes))]
    return {
        (image, target - starts[image]): query
        for image, query, target in zip(
            match.image.tolist(), match.query[layer].tolist(), match.target[layer].tolist(), strict=True
        )
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("alpha", "gamma", "weights"), [(ALPHA, GAMMA, WEIGHTS), (0.7, 1.5, (4.0, 1.0, 0.5)), (0.25, 2.0, (0.0, 0.0, 1.0))]
)
def test_equals_brute_force(naive, make_random, seed, alpha, gamma, weights):
    torch.manual_seed(seed)
    sizes = (3, 0, 5, 1)
    predictions = make_random.predictions(layers=2, batch=4, queries=5)
    targets = make_random.targets(sizes, classes=4)
    match, _ = HungarianMatcher(FocalClassification(alpha, gamma), *weights)(predictions, targets)
    for layer in range(2):
        found = pairs(match, sizes, layer)
        assert len(found) == sum(sizes)
        for image, target in enumerate(targets):
            costs = naive.cost_matrix(
                predictions.logits[layer, image], predictions.boxes[layer, image], target, alpha, gamma, weights
            )
            expected = naive.cheapest(costs)
            assert [found[image, index] for index in range(len(target))] == expected


def test_proposals_are_matched_as_objects_of_class_0(matcher, naive, make_random):
    sizes = (2, 3)
    predictions = make_random.predictions(proposals=6)
    targets = make_random.targets(sizes, classes=4)
    _, match = matcher(predictions, targets)
    logits, boxes = predictions.proposals
    found = pairs(match, sizes, 0)
    for image, target in enumerate(targets):
        objects = Targets(torch.zeros_like(target.labels), target.boxes)
        expected = naive.cheapest(naive.cost_matrix(logits[image], boxes[image], objects, ALPHA, GAMMA, WEIGHTS))
        assert [found[image, index] for index in range(len(target))] == expected


@pytest.mark.parametrize("sizes", [(0, 0), (0, 2), (2, 0)])
def test_images_without_targets(matcher, make_random, sizes):
    match, proposal_match = matcher(make_random.predictions(proposals=6), make_random.targets(sizes, classes=4))
    assert match.query.shape == match.target.shape == (3, sum(sizes))
    assert proposal_match.query.shape == (1, sum(sizes))
    assert match.image.tolist() == [image for image, size in enumerate(sizes) for _ in range(size)]
    assert {tensor.dtype for tensor in (match.image, match.query, match.target)} == {torch.int64}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_infinite_costs_are_rejected(matcher, make_random, value):
    predictions = make_random.predictions()
    predictions.boxes[1, 1, 4, 2] = value
    with pytest.raises(UserError, match=r"image 1 .*decoder layer 1 "):
        matcher(predictions, make_random.targets((2, 2), classes=4))
    predictions = make_random.predictions(proposals=6)
    predictions.proposals[0][0, 2, 0] = value
    with pytest.raises(UserError, match=r"image 0 .*encoder proposals"):
        matcher(predictions, make_random.targets((2, 2), classes=4))


def test_infinite_targets_are_rejected(matcher, make_random):
    targets = make_random.targets((2, 2), classes=4)
    targets[1].boxes[0, 3] = math.nan
    with pytest.raises(UserError, match="image 1 "):
        matcher(make_random.predictions(), targets)


def test_at_least_one_cost_must_not_be_0():
    with pytest.raises(ArgumentError, match="cost_class"):
        HungarianMatcher(FocalClassification(), 0.0, 0.0, 0.0)


def test_a_compiled_function_can_call_the_matcher(matcher, make_random):
    predictions, targets = make_random.predictions(), make_random.targets((2, 3), classes=4)
    compiled = torch.compile(lambda *arguments: matcher(*arguments)[0], backend="eager")
    match, expected = compiled(predictions, targets), matcher(predictions, targets)[0]
    assert torch.equal(match.query, expected.query) and torch.equal(match.target, expected.target)
