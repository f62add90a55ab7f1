"""Mask head, mask losses, and masks at the size of the original image."""

import pytest
import torch

from projects_deformable_detr import build_criterion, build_detector
from projects_deformable_detr.errors import UserError
from projects_deformable_detr.modeling import Predictions, Targets, batch_images, postprocess
from projects_deformable_detr.modeling.losses import MaskLoss
from projects_deformable_detr.modeling.mask_head import AttentionMaps
from projects_deformable_detr.modeling.postprocess import instance_masks
from projects_deformable_detr.modeling.structures import MaskLogits, Match

SIZES = ((96, 64), (64, 128))


@pytest.fixture
def make_mask_cfg(make_cfg):
    def make(variant="multi_scale", **changes):
        cfg = make_cfg(variant, HIDDEN_DIM=128, NHEADS=8, **changes)
        cfg.MODEL.MASK_ON = True
        cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
        return cfg

    return make


def inputs(counts=(3, 2)):
    images, mask = batch_images([torch.randn(3, *size) for size in SIZES])
    targets = []
    for size, count in zip(SIZES, counts, strict=True):
        boxes = torch.rand(count, 4) * 0.4 + 0.3
        targets.append(Targets(torch.randint(0, 5, (count,)), boxes, torch.rand(count, *size) > 0.5))
    return images, mask, targets


def mask_logits(logits, padding_mask=None):
    """Wraps precomputed mask logits (N, Q, h, w)."""
    if padding_mask is None:
        padding_mask = torch.zeros(len(logits), *logits.shape[-2:], dtype=torch.bool)
    return MaskLogits(lambda image, query: logits[image, query], padding_mask, logits.shape[1])


@pytest.mark.parametrize("counts", [(3, 2), (0, 0)])
@pytest.mark.parametrize("variant", ["detr", "multi_scale", "two_stage"])
def test_all_parameters_have_gradients_even_without_objects(make_mask_cfg, variant, counts):
    cfg = make_mask_cfg(variant)
    detector = build_detector(cfg)
    images, mask, targets = inputs(counts)
    losses = build_criterion(cfg)(detector(images, mask), targets)
    assert {"loss_mask", "loss_dice"} <= losses.keys() and "loss_mask_0" not in losses
    sum(losses.values()).backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    trained = detector.mask_head.output.weight.grad.abs().max() > 0
    assert trained == (sum(counts) > 0)


def test_masks_of_selected_queries(make_mask_cfg):
    detector = build_detector(make_mask_cfg("two_stage")).eval()
    masks = detector(*inputs()[:2]).masks
    all_masks = masks.all()
    assert all_masks.shape == (2, 7, 24, 32)  # stride 4 of the padded 96 x 128
    image, query = torch.tensor([1, 0, 1]), torch.tensor([6, 2, 0])
    torch.testing.assert_close(masks(image, query), all_masks[image, query], rtol=1e-4, atol=1e-5)


def test_attention_feature(make_mask_cfg):
    cfg = make_mask_cfg()
    for name, level in (("", 2), ("res5", 2), ("res3", 0)):
        cfg.MODEL.DETR.MASKS.ATTENTION_FEATURE = name
        assert build_detector(cfg).mask_head.level == level


def test_attention_maps_are_one_distribution_over_heads_and_positions():
    attention, padding = AttentionMaps(16, 4), torch.zeros(2, 10, dtype=torch.bool)
    padding[1, 6:] = True
    memory = torch.randn(2, 10, 16)
    hidden = torch.randn(2, 3, 16)
    weights = attention(hidden, memory, padding)
    assert weights.shape == (2, 3, 4, 10)
    torch.testing.assert_close(weights.sum((2, 3)), torch.ones(2, 3))
    assert (weights[1, :, :, 6:] == 0).all()
    alone = attention(hidden[1:], memory[1:, :6], padding[1:, :6])
    torch.testing.assert_close(weights[1:, :, :, :6], alone)


def test_frozen_detector_does_not_change(make_mask_cfg):
    cfg = make_mask_cfg(NORM="BN", DROPOUT=0.5)
    cfg.MODEL.DETR.MASKS.FREEZE_DETECTOR = True
    detector = build_detector(cfg).train()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    images, mask, targets = inputs()
    predictions = detector(images, mask)
    again = detector(images, mask)
    torch.testing.assert_close(predictions.logits, again.logits, rtol=0, atol=0)  # no dropout
    sum(build_criterion(cfg)(predictions, targets).values()).backward()
    for name, parameter in detector.named_parameters():
        assert (parameter.grad is not None) == name.startswith("mask_head."), name
    for name, value in detector.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert detector.mask_head.training and not detector.eval().mask_head.training


def test_losses_of_a_padded_batch():
    """Two images with one target each; predictions are wrong only on the padding of the second."""
    padding = torch.zeros(2, 4, 4, dtype=torch.bool)
    padding[1, 2:] = True
    wanted = torch.zeros(2, 4, 4)
    wanted[0, :2, :2] = wanted[1, 0] = 1
    logits = (wanted * 2 - 1) * 20
    logits[1, 3] = 20  # four pixels of padding
    targets = [Targets(torch.tensor([0]), torch.rand(1, 4), wanted[0, None].bool()),
               Targets(torch.tensor([0]), torch.rand(1, 4), wanted[1, None, :2].bool())]  # fmt: skip
    match = Match(torch.tensor([0, 1]), torch.zeros(1, 2, dtype=torch.int64), torch.tensor([[0, 1]]))
    losses = MaskLoss(3.0, 5.0)(mask_logits(logits[:, None], padding), match, targets, torch.tensor(2.0))
    assert losses["loss_mask"].item() == pytest.approx(3 / 2 * 0.75 * 20 * 4 / 16, rel=1e-4)
    assert losses["loss_dice"].item() == pytest.approx(5 / 2 * (1 - (2 * 4 + 1) / (8 + 4 + 1)), rel=1e-4)


def test_targets_without_masks_are_rejected(make_mask_cfg):
    cfg = make_mask_cfg()
    images, mask, targets = inputs()
    targets[1] = Targets(targets[1].labels, targets[1].boxes)
    with pytest.raises(UserError, match="image 1 of the batch has no masks"):
        build_criterion(cfg)(build_detector(cfg)(images, mask), targets)


def test_images_without_objects_need_no_masks(make_mask_cfg):
    cfg = make_mask_cfg()
    detector, criterion = build_detector(cfg), build_criterion(cfg)
    for counts in ((3, 0), (0, 0)):
        images, mask, targets = inputs(counts)
        predictions = detector(images, mask)
        bare = [Targets(t.labels, t.boxes, t.masks if len(t) else None) for t in targets]
        losses, expected = criterion(predictions, bare), criterion(predictions, targets)
        for name in ("loss_mask", "loss_dice"):
            torch.testing.assert_close(losses[name], expected[name])


def test_masks_in_chunks(make_mask_cfg, monkeypatch):
    """Losses and gradients do not depend on the number of masks that are computed together."""
    cfg = make_mask_cfg("two_stage")
    detector, (images, mask, targets) = build_detector(cfg).eval(), inputs((3, 2))
    together, upsample = [], detector.mask_head.upsample
    monkeypatch.setattr(
        detector.mask_head, "upsample", lambda *args: (together.append(len(args[0])), upsample(*args))[1]
    )

    def losses_and_gradients():
        detector.zero_grad()
        losses = build_criterion(cfg)(detector(images, mask), targets)
        (losses["loss_mask"] + losses["loss_dice"]).backward()
        gradients = [part.grad.clone() for part in detector.parameters() if part.grad is not None]
        return [losses["loss_mask"].detach(), losses["loss_dice"].detach(), *gradients]

    expected = losses_and_gradients()
    assert together == [5]
    monkeypatch.setattr("projects_deformable_detr.modeling.losses.LOSS_CHUNK_SIZE", 2)
    together.clear()
    found = losses_and_gradients()
    assert sorted(together) == [1, 1, 2, 2, 2, 2]  # each in the forward pass, and again for the backward pass
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    together.clear()
    assert detector(images, mask).masks.all().shape[:2] == (2, 7) and together == [14]
    monkeypatch.setattr("projects_deformable_detr.modeling.structures.MASKS_PER_CHUNK", 5)
    together.clear()
    assert detector(images, mask).masks.all().shape[:2] == (2, 7) and together == [5, 5, 4]


def test_instance_masks_at_the_size_of_the_image():
    """Padding is removed before masks are resized."""
    logits = torch.full((1, 2, 10, 12), -5.0)
    logits[0, 1, :, 5:] = 5.0  # the right half of an image that is 10 x 10 of 10 x 12
    padding = torch.zeros(1, 40, 48, dtype=torch.bool)
    padding[:, :, 40:] = True
    found = instance_masks(mask_logits(logits, padding), 0, torch.tensor([1, 0, 1]), (80, 20))
    assert found.shape == (3, 80, 20) and not found[1].any() and torch.equal(found[0], found[2])
    expected = torch.zeros(80, 20, dtype=torch.bool)
    expected[:, 10:] = True
    assert torch.equal(found[0], expected)


def test_masks_of_detections_restricted_to_things():
    logits = torch.tensor([[3.0, -9, -9], [-9.0, 2, -9], [-9.0, -9, 4]])[None, None]
    masks = torch.full((1, 3, 4, 4), -1.0)
    for query in range(3):
        masks[0, query, query] = 1.0
    predictions = Predictions(logits, torch.rand(1, 1, 3, 4) * 0.2 + 0.4, masks=mask_logits(masks))
    (found,) = postprocess(predictions, [(4, 4)], topk=3)
    assert found.labels.tolist() == [2, 0, 1] and found.masks.any(2).nonzero()[:, 1].tolist() == [2, 0, 1]
    (things,) = postprocess(predictions, [(4, 4)], topk=2, classes=range(2))
    assert things.labels.tolist() == [0, 1] and things.masks.any(2).nonzero()[:, 1].tolist() == [0, 1]
    assert len(things.boxes) == len(things.scores) == 2


@pytest.mark.parametrize("no_object", [False, True])
def test_stuff_is_not_counted_in_topk(no_object):
    """Two of three queries have their best score for stuff, the last class; topk is 2."""
    logits = torch.tensor([[-2.0, -3, 5, -9], [-1.0, -4, 5, -9], [1.0, -5, 0, -9]])
    logits = logits if no_object else logits[:, :3]
    predictions = Predictions(logits[None, None], torch.rand(1, 1, 3, 4) * 0.2 + 0.4, no_object=no_object)
    (found,) = postprocess(predictions, [(4, 4)], topk=2, classes=range(2))
    assert found.labels.tolist() == ([0] if no_object else [0, 0])
    expected = logits.softmax(-1)[[2], 0] if no_object else logits.sigmoid()[[2, 1], 0]
    torch.testing.assert_close(found.scores, expected)
    assert postprocess(predictions, [(4, 4)], topk=2)[0].labels.tolist() == [2, 2]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda cfg: cfg.MODEL.RESNETS.OUT_FEATURES.remove("res2"), r"MASKS.IN_FEATURES must .*features \['res3'"),
        (lambda cfg: cfg.MODEL.DETR.MASKS.update(IN_FEATURES=["res3", "res2"]), "must be three"),
        (lambda cfg: cfg.MODEL.DETR.MASKS.update(ATTENTION_FEATURE="res2"), "ATTENTION_FEATURE must .*got 'res2'"),
        (lambda cfg: cfg.MODEL.DETR.update(HIDDEN_DIM=64), "HIDDEN_DIM must be a multiple of 128.*got 64"),
        (lambda cfg: cfg.MODEL.DETR.update(NHEADS=4), "NHEADS must .*got 4"),
        (lambda cfg: cfg.MODEL.DETR.update(DEC_LAYERS=0), "needs a decoder"),
        (lambda cfg: (cfg.MODEL.update(MASK_ON=False), cfg.MODEL.DETR.MASKS.update(FREEZE_DETECTOR=True)), "MASK_ON"),
        (lambda cfg: (cfg.MODEL.update(MASK_ON=False), cfg.MODEL.DETR.PANOPTIC.update(ENABLED=True)), "MASK_ON"),
    ],
)
def test_invalid_configs(make_mask_cfg, change, named):
    cfg = make_mask_cfg()
    change(cfg)
    with pytest.raises(UserError, match=named):
        build_detector(cfg)
