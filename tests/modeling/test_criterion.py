"""The set criterion against a scalar reference implementation."""

from dataclasses import replace

import pytest
import torch
from torch import distributed
from torchvision.ops import sigmoid_focal_loss

from projects_deformable_detr import build_criterion, build_detector
from projects_deformable_detr.errors import ArgumentError
from projects_deformable_detr.modeling import BatchSize, Predictions, SetCriterion, Targets, cardinality_error
from projects_deformable_detr.modeling.losses import FocalClassification

VARIANTS = [
    "single_scale", "single_scale_dc5", "multi_scale", "box_refine", "two_stage", "encoder_only", "own_level", "detr",
    "detr_pre_norm", "detr_dc5_plus",
]  # fmt: skip
STEMS = {"loss_ce", "loss_bbox", "loss_giou"}


def naive_losses(naive, cfg, logits, boxes, targets):
    """Computes the losses of one layer from logits (N, Q, C) and boxes (N, Q, 4)."""
    detr = cfg.MODEL.DETR
    focal, costs = (detr.FOCAL_ALPHA, detr.FOCAL_GAMMA), (detr.COST_CLASS, detr.COST_BBOX, detr.COST_GIOU)
    total = dict.fromkeys(STEMS, 0.0)
    for image, target in enumerate(targets):
        chosen = naive.cheapest(naive.cost_matrix(logits[image], boxes[image], target, *focal, costs))
        labels = {query: int(target.labels[index]) for index, query in enumerate(chosen)}
        for query, scores in enumerate(logits[image].tolist()):
            for label, score in enumerate(scores):
                total["loss_ce"] += naive.focal_terms(score, *focal)[0 if labels.get(query) == label else 1]
        for index, query in enumerate(chosen):
            found, wanted = boxes[image, query].tolist(), target.boxes[index].tolist()
            total["loss_bbox"] += sum(abs(a - b) for a, b in zip(found, wanted, strict=True))
            total["loss_giou"] += 1 - naive.giou(found, wanted)
    weights = {"loss_ce": detr.CLASS_WEIGHT, "loss_bbox": detr.L1_WEIGHT, "loss_giou": detr.GIOU_WEIGHT}
    count = max(sum(len(target) for target in targets), 1)
    return {name: weights[name] * value / count for name, value in total.items()}


@pytest.mark.parametrize("sizes", [(3, 2), (0, 4), (0, 0), (1, 0)])
@pytest.mark.parametrize(
    "changes", [{}, {"FOCAL_ALPHA": 0.6, "FOCAL_GAMMA": 1.0, "CLASS_WEIGHT": 3.0, "L1_WEIGHT": 0.5, "COST_BBOX": 0.1}]
)
def test_equals_scalar_reference(naive, make_random, make_cfg, sizes, changes):
    cfg = make_cfg(**changes)
    predictions = make_random.predictions(layers=3, queries=5, classes=4, proposals=6)
    targets = make_random.targets(sizes, classes=4)
    losses = build_criterion(cfg)(predictions, targets)
    expected = {}
    for layer, suffix in enumerate(("_0", "_1", "")):
        values = naive_losses(naive, cfg, predictions.logits[layer], predictions.boxes[layer], targets)
        expected |= {name + suffix: value for name, value in values.items()}
    objects = [Targets(torch.zeros_like(target.labels), target.boxes) for target in targets]
    values = naive_losses(naive, cfg, *predictions.proposals, objects)
    expected |= {f"{name}_enc": value for name, value in values.items()}
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert losses[name].shape == ()
        assert losses[name].item() == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_focal_keys_reach_matcher_and_loss(make_cfg):
    criterion = build_criterion(make_cfg(FOCAL_ALPHA=0.4, FOCAL_GAMMA=3.0))
    assert criterion.classification == criterion.matcher.classification == FocalClassification(0.4, 3.0)
    with pytest.raises(ArgumentError, match="classification must equal that of `matcher`"):
        SetCriterion(FocalClassification(), criterion.matcher, criterion.weights)


def test_predictions_of_another_class_loss_are_rejected(make_random, make_cfg):
    predictions = replace(make_random.predictions(classes=4), no_object=True)
    with pytest.raises(ValueError, match="a logit for no object.*same class_loss"):
        build_criterion(make_cfg())(predictions, make_random.targets((1, 1), classes=3))


def test_losses_without_deep_supervision(make_random, make_cfg):
    predictions = make_random.predictions(proposals=6)
    targets = make_random.targets((2, 3), classes=4)
    everything = build_criterion(make_cfg())(predictions, targets)
    losses = build_criterion(make_cfg(DEEP_SUPERVISION=False))(predictions, targets)
    assert losses.keys() == STEMS | {f"{name}_enc" for name in STEMS}
    torch.testing.assert_close(losses, {name: everything[name] for name in losses})


def test_errors_without_deep_supervision_have_the_index_of_the_layer(make_random, make_cfg):
    predictions = make_random.predictions(layers=3)
    predictions.boxes[2, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="decoder layer 2 "):
        build_criterion(make_cfg(DEEP_SUPERVISION=False))(predictions, make_random.targets((2, 3), classes=4))


def test_number_of_targets_must_equal_number_of_images(make_random, make_cfg):
    with pytest.raises(ValueError, match="2 images, targets 3"):
        build_criterion(make_cfg())(make_random.predictions(batch=2), make_random.targets((1, 1, 1), classes=4))


@pytest.mark.parametrize("sizes", [(2, 3), (0, 3), (0, 0)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_gets_a_finite_gradient(make_random, make_cfg, variant, sizes):
    """Also for images without targets: distributed training fails for parameters without gradient."""
    cfg = make_cfg(variant)
    detector = build_detector(cfg)
    images, mask = torch.randn(2, 3, 64, 80), torch.zeros(2, 64, 80, dtype=torch.bool)
    mask[1, 50:] = True
    predictions = detector(images, mask)
    assert predictions.no_object == (variant in ("detr", "detr_pre_norm")) and predictions.num_classes == 5
    losses = build_criterion(cfg)(predictions, make_random.targets(sizes, classes=5))
    sum(losses.values()).backward()
    without = [name for name, parameter in detector.named_parameters() if parameter.grad is None]
    assert without == []
    assert all(parameter.grad.isfinite().all() for parameter in detector.parameters())
    assert any(parameter.grad.abs().max() > 0 for parameter in detector.backbone.parameters())


@pytest.mark.parametrize("variant", ["two_stage", "detr"])
def test_losses_of_parts_add_up_to_those_of_the_batch(make_random, make_cfg, variant):
    criterion, is_detr = build_criterion(make_cfg(variant)), variant == "detr"
    predictions = make_random.predictions(batch=4, queries=8, proposals=0 if is_detr else 9)
    predictions = replace(predictions, no_object=is_detr)
    targets = make_random.targets((1, 0, 7, 2), classes=predictions.num_classes)
    expected, total = criterion(predictions, targets), dict.fromkeys(criterion(predictions, targets), 0.0)
    for rows in (slice(0, 1), slice(1, 2), slice(2, 4)):
        proposals = predictions.proposals and tuple(tensor[rows] for tensor in predictions.proposals)
        logits, boxes = predictions.logits[:, rows], predictions.boxes[:, rows]
        part = replace(predictions, logits=logits, boxes=boxes, proposals=proposals)
        for name, value in criterion(part, targets[rows], BatchSize(4, 10)).items():
            total[name] += value.item()
    assert total == pytest.approx({name: value.item() for name, value in expected.items()}, rel=1e-5)


def test_cardinality_error():
    logits = torch.full((2, 2, 4, 3), -3.0)
    logits[1, 0, :3, 1] = 0.1  # three objects in the first image, none in the second
    predictions = Predictions(logits, torch.zeros(2, 2, 4, 4))
    targets = [Targets(torch.zeros(1, dtype=torch.int64), torch.zeros(1, 4)) for _ in range(2)]
    assert cardinality_error(predictions, targets).item() == (abs(3 - 1) + abs(0 - 1)) / 2


def _losses_of_rank(rank, folder, results):
    torch.manual_seed(0)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    predictions, targets, criterion = results[f"input{rank}"]
    results[f"losses{rank}"] = {name: value.item() for name, value in criterion(predictions, targets).items()}
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_gloo_available(), reason="this PyTorch is built without gloo")
@pytest.mark.parametrize("sizes", [((4, 3), (0, 0)), ((0, 0), (0, 0))])
def test_number_of_boxes_is_averaged_over_ranks(make_random, make_cfg, tmp_path, sizes):
    criterion = build_criterion(make_cfg())
    # Forked processes need not import modules again; they run no backward pass.
    context = torch.multiprocessing.get_context("fork")
    with context.Manager() as manager:
        results = manager.dict()
        for rank in range(2):
            inputs = make_random.predictions(), make_random.targets(sizes[rank], classes=4), criterion
            results[f"input{rank}"] = inputs
        workers = [context.Process(target=_losses_of_rank, args=(rank, tmp_path, results)) for rank in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        assert [worker.exitcode for worker in workers] == [0, 0]
        average = max(sum(map(sum, sizes)) / 2, 1)
        for rank in range(2):
            predictions, targets, _ = results[f"input{rank}"]
            own = max(sum(sizes[rank]), 1)
            for name, value in criterion(predictions, targets).items():
                assert results[f"losses{rank}"][name] == pytest.approx(value.item() * own / average, rel=1e-5), name


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 0.0), (0.0, 1.5)])
def test_focal_loss_equals_torchvision(alpha, gamma):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(2, 3, 5, 7, generator=generator) * 6).requires_grad_()
    matched = torch.randint(-1, 7, (2, 3, 5), generator=generator)
    found = FocalClassification(alpha, gamma).loss(logits, matched, torch.tensor(4.0), torch.tensor(3.0))
    targets = torch.nn.functional.one_hot(matched + 1, 8)[..., 1:].float()
    expected = sigmoid_focal_loss(logits, targets, alpha, gamma).sum((1, 2, 3)) / 4
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss.sum(), logits)[0] for loss in (found, expected)))
