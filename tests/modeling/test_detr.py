"""DETR: its class loss one query at a time, its one detection a query, its positions, norms and padding."""

import math

import pytest
import torch

from projects_deformable_detr import build_criterion, build_detector
from projects_deformable_detr.errors import ArgumentError, UserError
from projects_deformable_detr.modeling import Predictions, batch_images, cardinality_error, postprocess
from projects_deformable_detr.modeling.losses import SoftmaxClassification
from projects_deformable_detr.modeling.position_encoding import LearnedPositionEmbedding
from projects_deformable_detr.modeling.structures import Tokens

NEW = ["detr", "detr_pre_norm", "detr_dc5_plus", "encoder_only", "own_level"]


def images_and_mask():
    return batch_images([torch.randn(3, 96, 64), torch.randn(3, 64, 128)])


@pytest.mark.parametrize("variant", NEW)
def test_every_variant_trains_every_parameter(make_cfg, make_random, variant):
    cfg = make_cfg(variant)
    detector, criterion = build_detector(cfg), build_criterion(cfg)
    predictions = detector(*images_and_mask())
    assert predictions.no_object == (variant in ("detr", "detr_pre_norm"))
    assert predictions.num_classes == 5
    sum(criterion(predictions, make_random.targets((3, 2), classes=5)).values()).backward()
    used = {name for name, parameter in detector.named_parameters() if parameter.grad is not None}
    assert used == {name for name, _ in detector.named_parameters()}
    assert all(parameter.grad.isfinite().all() for parameter in detector.parameters())


@pytest.mark.parametrize("sizes", [(3, 2), (0, 4), (0, 0)])
def test_softmax_losses_equal_the_naive_ones(naive, make_cfg, make_random, sizes):
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


def test_a_query_gives_one_detection_never_no_object():
    chances = torch.tensor([[0.1, 0.2, 0.7], [0.3, 0.6, 0.1], [0.5, 0.4, 0.1]])
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.2]).expand(1, 1, 3, 4)
    predictions = Predictions(chances.log()[None, None], boxes, no_object=True)
    (found,) = postprocess(predictions, [(10, 10)])
    assert found.labels.tolist() == [1, 0, 1]
    torch.testing.assert_close(found.scores, torch.tensor([0.6, 0.5, 0.2]))
    (best,) = postprocess(predictions, [(10, 10)], topk=2)
    assert best.labels.tolist() == [1, 0]


def test_a_softmax_query_calls_an_object_when_that_is_likelier_than_none(make_random):
    logits = torch.zeros(1, 2, 3, 3)
    logits[..., 2] = 1.0
    logits[0, 0, 1, 0] = 2.0
    predictions = Predictions(logits, torch.zeros(1, 2, 3, 4), no_object=True)
    assert cardinality_error(predictions, make_random.targets((1, 1), classes=2)).item() == (0 + 1) / 2


def test_no_object_weight_must_be_positive(make_cfg):
    with pytest.raises(ArgumentError, match="no_object_weight"):
        SoftmaxClassification(0.0)


@pytest.mark.parametrize("variant", ["detr", "detr_pre_norm", "encoder_only", "own_level"])
def test_padding_changes_nothing(make_cfg, variant):
    """Tokens of an image alone, and padded by rows and columns full of garbage, give the same boxes."""
    detector = build_detector(make_cfg(variant)).eval()
    for parameter in detector.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    levels, padded = ((4, 3), (2, 2), (1, 1), (1, 1)), ((5, 6), (3, 3), (2, 2), (1, 1))
    count = len(detector.tokenizer.projections)
    values = [torch.randn(1, h, w, 64) for h, w in levels[:count]]
    alone = _decode(detector, _tokens(values, levels[:count]))
    together = _decode(detector, _tokens(values, padded[:count]))
    if variant == "encoder_only":
        keep = ~_tokens(values, padded[:count]).padding_mask[0]
        assert (together[0][:, :, ~keep] == -1e4).all()
        together = tuple(tensor[:, :, keep] for tensor in together)
    for wanted, got in zip(alone, together, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def _tokens(values, sizes):
    """Tokens of one image whose levels are ``values`` (1, h, w, C), in maps of ``sizes``; garbage on padding."""
    generator = torch.Generator().manual_seed(3)
    joined, masks, positions, ratios = [], [], [], []
    for index, (value, (height, width)) in enumerate(zip(values, sizes, strict=True)):
        h, w = value.shape[1:3]
        full = torch.full((1, height, width, 64), 30.0)
        full[:, :h, :w] = value
        mask = torch.ones(1, height, width, dtype=torch.bool)
        mask[:, :h, :w] = False
        place = torch.full_like(full, -20.0)
        generator.manual_seed(index)
        place[:, :h, :w] = torch.randn(1, h, w, 64, generator=generator)
        for parts, part in ((joined, full), (masks, mask), (positions, place)):
            parts.append(part.flatten(1, 2))
        ratios.append(torch.tensor([[w / width, h / height]]))
    return Tokens(
        torch.cat(joined, 1), torch.cat(positions, 1), torch.cat(masks, 1), tuple(sizes), torch.stack(ratios, 1)
    )


@torch.no_grad()
def _decode(detector, tokens):
    memory = detector.encoder(tokens)
    if detector.decoder is None:
        return tuple(tensor[None] for tensor in detector.queries(memory, tokens))
    return detector.decoder(detector.queries(memory, tokens), memory, tokens)[:2]


def test_without_multi_scale_attention_levels_do_not_mix(make_cfg):
    encoder = build_detector(make_cfg("own_level")).eval().encoder
    sizes = ((4, 3), (2, 2))
    values = [torch.randn(1, h, w, 64) for h, w in sizes]
    before = encoder(_tokens(values, sizes))
    values[1] = values[1] + 1.0
    after = encoder(_tokens(values, sizes))
    assert torch.equal(after[:, :12], before[:, :12])
    assert not torch.isclose(after[:, 12:], before[:, 12:]).all()


def test_pre_norm_residuals_reach_the_output_unnormalised(make_cfg):
    """With all attention and feed-forward outputs at zero, a pre-norm encoder is its final norm alone."""
    encoder = build_detector(make_cfg("detr_pre_norm")).encoder
    for layer in encoder.layers:
        for linear in (layer.self_attn.out_proj, layer.ffn.linear2):
            torch.nn.init.zeros_(linear.weight)
            torch.nn.init.zeros_(linear.bias)
    tokens = _tokens([3 * torch.randn(1, 4, 3, 64)], ((4, 3),))
    torch.testing.assert_close(encoder(tokens), torch.nn.functional.layer_norm(tokens.values, (64,)))


def test_learned_positions_tell_x_then_y():
    embedding = LearnedPositionEmbedding(8, size=6)
    grid = embedding(torch.zeros(2, 3, 5, dtype=torch.bool))
    assert grid.shape == (2, 8, 3, 5)
    assert torch.equal(grid[1, :, 2, 4], torch.cat((embedding.column[4], embedding.row[2])))
    with pytest.raises(UserError, match="feature map of 7 x 5.*6 learned positions.*position_embedding_size"):
        embedding(torch.zeros(1, 7, 5, dtype=torch.bool))


def test_encoder_only_finds_boxes_of_all_tokens(make_cfg):
    cfg = make_cfg("encoder_only")
    predictions = build_detector(cfg).eval()(*images_and_mask())
    tokens = 12 * 16 + 6 * 8 + 3 * 4 + 2 * 2  # strides 8 to 64 of 96 x 128
    assert predictions.logits.shape == (1, 2, tokens, 5) and predictions.boxes.shape == (1, 2, tokens, 4)
    assert predictions.proposals is None
    for found in postprocess(predictions, [(96, 64), (64, 128)], topk=50):
        assert len(found.boxes) == 50 and (found.scores > 0).all()


@pytest.mark.parametrize("variant", ["detr", "detr_pre_norm"])
def test_recomputed_encoder_layers_give_the_same_gradients(make_cfg, make_random, variant):
    cfg = make_cfg(variant)
    detector, criterion = build_detector(cfg).train(), build_criterion(cfg)
    images, mask = images_and_mask()
    targets, gradients = make_random.targets((2, 2), classes=5), []
    for recompute in (False, True):
        detector.zero_grad()
        detector.encoder.activation_checkpointing = recompute
        with torch.random.fork_rng():
            sum(criterion(detector(images, mask), targets).values()).backward()
        gradients.append([parameter.grad.clone() for parameter in detector.parameters()])
    for wanted, got in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted)
