"""DETR's losses, postprocessing and norms, and variants of Deformable DETR's encoder."""

import math

import pytest
import torch

from projects_deformable_detr import build_criterion, build_detector
from projects_deformable_detr.modeling import Predictions, batch_images, cardinality_error, postprocess


@pytest.mark.parametrize("sizes", [(3, 2), (0, 4), (0, 0)])
def test_softmax_losses_equal_scalar_reference(naive, make_cfg, make_random, sizes):
    cfg = make_cfg("detr", NO_OBJECT_WEIGHT=0.3, CLASS_WEIGHT=1.5, COST_CLASS=1.0)
    predictions = make_random.predictions(layers=2, queries=5, classes=5)  # four classes and no object
    predictions = Predictions(predictions.logits, predictions.boxes, no_object=True)
    targets = make_random.targets(sizes, classes=4)
    losses = build_criterion(cfg)(predictions, targets)
    for layer, suffix in ((0, "_0"), (1, "")):
        total = weights = distance = 0.0
        for image, target in enumerate(targets):
            chances = predictions.logits[layer, image].double().softmax(-1).tolist()
            boxes = predictions.boxes[layer, image].double().tolist()
            costs = [
                [
                    -chances[query][label]
                    + 5 * sum(abs(a - b) for a, b in zip(boxes[query], box, strict=True))
                    - 2 * naive.giou(boxes[query], box)
                    for label, box in zip(target.labels.tolist(), target.boxes.double().tolist(), strict=True)
                ]
                for query in range(5)
            ]
            chosen = naive.cheapest(costs)
            for query in range(5):
                label = int(target.labels[chosen.index(query)]) if query in chosen else 4
                weight = 0.3 if label == 4 else 1.0
                total, weights = total - weight * math.log(chances[query][label]), weights + weight
            for index, query in enumerate(chosen):
                distance += sum(abs(a - b) for a, b in zip(boxes[query], target.boxes[index].tolist(), strict=True))
        assert losses[f"loss_ce{suffix}"].item() == pytest.approx(1.5 * total / weights, rel=1e-5)
        assert losses[f"loss_bbox{suffix}"].item() == pytest.approx(5 * distance / max(sum(sizes), 1), rel=1e-5)


def test_softmax_queries_have_one_detection_of_their_best_class():
    chances = torch.tensor([[0.1, 0.2, 0.7], [0.3, 0.6, 0.1], [0.5, 0.4, 0.1]])
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.2]).expand(1, 1, 3, 4)
    predictions = Predictions(chances.log()[None, None], boxes, no_object=True)
    (found,) = postprocess(predictions, [(10, 10)])
    assert found.labels.tolist() == [1, 0, 1]
    torch.testing.assert_close(found.scores, torch.tensor([0.6, 0.5, 0.2]))
    (best,) = postprocess(predictions, [(10, 10)], topk=2)
    assert best.labels.tolist() == [1, 0]


def test_softmax_foreground_is_more_likely_than_no_object(make_random):
    logits = torch.zeros(1, 2, 3, 3)
    logits[..., 2] = 1.0
    logits[0, 0, 1, 0] = 2.0
    predictions = Predictions(logits, torch.zeros(1, 2, 3, 4), no_object=True)
    assert cardinality_error(predictions, make_random.targets((1, 1), classes=2)).item() == (0 + 1) / 2


def test_levels_are_independent_without_multi_scale_attention(make_cfg, make_random):
    encoder = build_detector(make_cfg("own_level")).eval().encoder
    sizes = ((4, 3), (2, 2))
    values = [torch.randn(*size, 64) for size in sizes]
    before = encoder(make_random.tokens([values], sizes))
    values[1] = values[1] + 1.0
    after = encoder(make_random.tokens([values], sizes))
    assert torch.equal(after[:, :12], before[:, :12])
    assert not torch.isclose(after[:, 12:], before[:, 12:]).all()


def test_pre_norm_encoder_normalizes_residuals_once(make_cfg, make_random):
    """With zero outputs of attention and feed-forward networks, the encoder is its final norm."""
    encoder = build_detector(make_cfg("detr_pre_norm")).encoder
    for layer in encoder.layers:
        for linear in (layer.self_attn.out_proj, layer.ffn.linear2):
            torch.nn.init.zeros_(linear.weight)
            torch.nn.init.zeros_(linear.bias)
    tokens = make_random.tokens([[3 * torch.randn(4, 3, 64)]], [(4, 3)])
    torch.testing.assert_close(encoder(tokens), torch.nn.functional.layer_norm(tokens.values, (64,)))


def test_encoder_only_predicts_boxes_of_all_tokens(make_cfg):
    cfg = make_cfg("encoder_only")
    predictions = build_detector(cfg).eval()(*batch_images([torch.randn(3, 96, 64), torch.randn(3, 64, 128)]))
    tokens = 12 * 16 + 6 * 8 + 3 * 4 + 2 * 2  # strides 8 to 64 of 96 x 128
    assert predictions.logits.shape == (1, 2, tokens, 5) and predictions.boxes.shape == (1, 2, tokens, 4)
    assert predictions.proposals is None
    for found in postprocess(predictions, [(96, 64), (64, 128)], topk=50):
        assert len(found.boxes) == 50 and (found.scores > 0).all()
