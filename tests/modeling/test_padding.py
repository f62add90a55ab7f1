"""Padding: results of images in a padded batch equal those of single images."""

import math

import pytest
import torch

from projects_deformable_detr import build_detector
from projects_deformable_detr.errors import UserError
from projects_deformable_detr.modeling import batch_images, postprocess
from projects_deformable_detr.modeling.neck import Neck
from projects_deformable_detr.modeling.position_encoding import SinePositionEmbedding

CHANNELS = 64
# Sizes (H, W) of the levels of two images, and of the padded batch of both.
SMALL, LARGE, BATCH = ((6, 5), (3, 3)), ((7, 9), (4, 5)), ((8, 9), (4, 5))


@torch.no_grad()
def transformer(detector, tokens):
    """Returns memory without padding, and predictions, of each image."""
    memory = detector.encoder(tokens)
    valid = ~tokens.padding_mask
    queries = detector.queries(memory, tokens)
    results = [{"memory": memory[index][valid[index]]} for index in range(len(memory))]
    if detector.decoder is None:
        logits, boxes = queries
        assert (logits[~valid] == -1e4).all()
        logits, boxes = logits[None], boxes[None]
    else:
        logits, boxes, _ = detector.decoder(queries, memory, tokens)
        valid = torch.ones(len(memory), boxes.shape[2], dtype=torch.bool)
    for index, result in enumerate(results):
        result |= {"logits": logits[:, index, valid[index]], "boxes": boxes[:, index, valid[index]]}
    return results


DEFORMABLE = ["multi_scale", "box_refine", "two_stage", "encoder_only", "own_level"]


@pytest.mark.parametrize(
    ("variant", "garbage"),
    # DETR's attention has no weight on padding, but cannot hide NaN.
    [(variant, value) for variant in DEFORMABLE for value in (50.0, math.nan)]
    + [("detr", 50.0), ("detr_pre_norm", 50.0)],
)
def test_padding_does_not_change_results(make_cfg, make_random, shake, variant, garbage):
    options = {} if variant.startswith("detr") else {"IN_FEATURES": ["res4", "res5"], "NUM_FEATURE_LEVELS": 2}
    detector = shake(build_detector(make_cfg(variant, **options))).eval()
    levels = len(detector.tokenizer.projections)
    sizes = [small_or_large[:levels] for small_or_large in (SMALL, LARGE)]
    images = [[torch.randn(*size, CHANNELS) for size in each] for each in sizes]
    together = transformer(detector, make_random.tokens(images, BATCH[:levels], garbage))
    for image, size, found in zip(images, sizes, together, strict=True):
        (alone,) = transformer(detector, make_random.tokens([image], size))
        for name, expected in alone.items():
            assert found[name].isfinite().all(), name
            torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-5)


def make_detector(make_cfg, model, **changes):
    """Builds a detector whose norms and projections shift features, as after training, so that zeros do not stay 0."""
    variant, *parts = model.split()
    backbone = next((part for part in parts if part not in ("masks", "GN", "BN", "deform")), "resnet")
    if "timm" in backbone:
        pytest.importorskip("timm", reason="timm is not installed")
    options = {"NORM": next((part for part in parts if part in ("GN", "BN")), "FrozenBN"), **changes}
    if "masks" in parts:
        options |= {"MASK_ON": True, "HIDDEN_DIM": 128, "NHEADS": 8}
    if "deform" in parts:
        options["DEPTH"] = 50
    cfg = make_cfg(variant, **options)
    cfg.MODEL.BACKBONE.NAME = f"build_deformable_detr_{backbone}_backbone"
    cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False, False, False, "deform" in parts]
    if "timm" in backbone:
        cfg.MODEL.BACKBONE.VARIANT = "convnext_atto"
    if "fpn" in backbone:
        cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.NORM = ["res3", "res4", "res5"], "GN"
        cfg.MODEL.DETR.IN_FEATURES = ["p3", "p4", "p5", "p6"]
    detector = build_detector(cfg).eval()
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        for name, buffer in detector.backbone.named_buffers():
            if name.endswith(("bias", "running_mean")):
                buffer.normal_()
    return detector


MODELS = [
    "single_scale", "single_scale_dc5", "multi_scale", "box_refine", "two_stage", "encoder_only", "own_level", "detr",
    "detr_pre_norm", "detr masks", "two_stage masks", "multi_scale GN", "multi_scale BN", "multi_scale deform",
    "multi_scale swin", "two_stage timm", "two_stage resnet_fpn",
]  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_detections_do_not_depend_on_the_batch(make_cfg, model):
    detector = make_detector(make_cfg, model)
    sizes = [(97, 70), (64, 131), (33, 57), (54, 54), (130, 161)]
    images = [torch.randn(3, *size) for size in sizes]
    together = postprocess(detector(*batch_images(images)), sizes, topk=20)
    alone = [postprocess(detector(*batch_images([image])), [image.shape[-2:]], topk=20)[0] for image in images]
    for expected, found in zip(alone, together, strict=True):
        assert torch.equal(found.labels, expected.labels)
        torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-4)
        torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-2)  # pixels
        assert expected.masks is None or (found.masks != expected.masks).float().mean() < 1e-4

    detector.mask_padding = "never"
    official = postprocess(detector(*batch_images(images)), sizes, topk=20)
    assert max((a.scores - b.scores).abs().max() for a, b in zip(alone, official, strict=True)) > 5e-3


@pytest.mark.parametrize("variant", ["two_stage", "encoder_only"])
@torch.no_grad()
def test_images_with_fewer_tokens_than_queries_do_not_depend_on_the_batch(make_cfg, variant):
    detector = make_detector(make_cfg, variant, NUM_OBJECT_QUERIES=40)
    images = [torch.randn(3, *size) for size in ((33, 20), (20, 65), (97, 130))]
    together = postprocess(detector(*batch_images(images)), [image.shape[-2:] for image in images], topk=400)
    for image, found in zip(images, together, strict=True):
        (alone,) = postprocess(detector(*batch_images([image])), [image.shape[-2:]], topk=400)
        assert torch.equal(found.labels, alone.labels)
        torch.testing.assert_close(found.scores, alone.scores, rtol=0, atol=1e-4)
        torch.testing.assert_close(found.boxes, alone.boxes, rtol=0, atol=1e-2)
    assert len(together[0].scores) < len(together[2].scores)


@torch.no_grad()
def test_no_detection_repeats_if_padding_is_not_masked(make_cfg):
    detector = make_detector(make_cfg, "two_stage", NUM_OBJECT_QUERIES=40)
    detector.mask_padding = "never"
    batch = batch_images([torch.randn(3, 33, 20), torch.randn(3, 97, 130)])
    found, _ = postprocess(detector(*batch), [(33, 20), (97, 130)], topk=400)
    assert len(found.boxes.unique(dim=0)) == len(found.queries.unique()) < 40


@torch.no_grad()
def test_mask_padding(make_cfg):
    detector = make_detector(make_cfg, "multi_scale")
    batch = batch_images([torch.randn(3, 64, 96), torch.randn(3, 96, 64)])
    found = {}
    for value in ("inference", "always", "never"):
        for training in (False, True):
            detector.mask_padding = value
            found[value, training] = detector.train(training)(*batch).logits
    independent, official = found["inference", False], found["inference", True]
    assert not torch.allclose(independent, official, atol=0.01)
    assert torch.equal(found["never", False], official) and torch.equal(found["never", True], official)
    torch.testing.assert_close(found["always", True], independent)
    torch.testing.assert_close(found["always", False], independent)


@pytest.mark.parametrize("variant", [pytest.param("multi_scale", marks=pytest.mark.slow), "two_stage"])
@torch.no_grad()
def test_compiled_detector_masks_padding_in_one_graph(make_cfg, variant):
    detector = make_detector(make_cfg, variant)
    batch = batch_images([torch.randn(3, 64, 96), torch.randn(3, 96, 64)])
    compiled = torch.compile(detector, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*batch).logits, detector(*batch).logits)


def test_masking_in_training_needs_a_backbone_with_masks(make_cfg):
    cfg = make_cfg(MASK_PADDING="always")
    assert build_detector(cfg).mask_padding == "always"
    cfg.MODEL.BACKBONE.NAME = "build_deformable_detr_swin_backbone"
    with pytest.raises(UserError, match=r"MODEL\.DETR\.MASK_PADDING must not be 'always' for SwinBackbone"):
        build_detector(cfg)


def tokenize(images):
    neck = Neck({"res4": 8, "res5": 8}, CHANNELS, 3, SinePositionEmbedding(CHANNELS)).eval()
    batch, mask = batch_images(images)
    height, width = batch.shape[-2:]
    sizes = [(-(-height // stride), -(-width // stride)) for stride in (16, 32)]
    features = {name: torch.randn(len(images), 8, *size) for name, size in zip(("res4", "res5"), sizes, strict=True)}
    with torch.no_grad():
        return neck(features, mask, mask_padding=True), mask


def test_valid_ratios_are_fractions_of_the_padded_size():
    tokens, _ = tokenize([torch.ones(3, 128, 64), torch.ones(3, 64, 192)])
    assert tokens.spatial_shapes == ((8, 12), (4, 6), (2, 3))
    assert tokens.level_start_index == (0, 96, 120)
    assert tokens.values.shape == tokens.positions.shape == (2, 126, CHANNELS)
    torch.testing.assert_close(tokens.valid_ratios[0], torch.tensor([[1 / 3, 1.0]] * 3))
    torch.testing.assert_close(tokens.valid_ratios[1], torch.tensor([[1.0, 0.5]] * 3))
    assert tokens.padding_mask.sum(1).tolist() == [64 + 16 + 4, 48 + 12 + 3]


@pytest.mark.parametrize("size", [(1, 1), (33, 97), (97, 131), (130, 20)])
def test_masks_agree_with_valid_ratios_at_odd_sizes(size):
    tokens, _ = tokenize([torch.ones(3, 131, 140), torch.ones(3, *size)])
    assert (tokens.valid_ratios[0] == 1).all()
    for level, ((height, width), start) in enumerate(zip(tokens.spatial_shapes, tokens.level_start_index, strict=True)):
        mask = tokens.padding_mask[1, start : start + height * width].view(height, width)
        columns, rows = (
            round(tokens.valid_ratios[1, level, 0].item() * width),
            round(tokens.valid_ratios[1, level, 1].item() * height),
        )
        expected = torch.ones(height, width, dtype=torch.bool)
        expected[:rows, :columns] = False
        assert rows >= 1 and columns >= 1
        assert torch.equal(mask, expected)


def test_positions_differ_between_levels():
    tokens, _ = tokenize([torch.ones(3, 64, 64)])
    starts = tokens.level_start_index
    first = [tokens.positions[0, start] for start in starts]
    assert not torch.allclose(first[0], first[1]) and not torch.allclose(first[1], first[2])


def test_batch_images_pads_right_and_below():
    images = [torch.rand(3, 5, 8), torch.rand(3, 7, 4)]
    batch, mask = batch_images(images)
    assert batch.shape == (2, 3, 7, 8) and mask.shape == (2, 7, 8)
    for image, padded, hidden in zip(images, batch, mask, strict=True):
        h, w = image.shape[1:]
        assert torch.equal(padded[:, :h, :w], image)
        assert padded.sum() == pytest.approx(image.sum().item(), rel=1e-5)
        assert not hidden[:h, :w].any() and (~hidden).sum() == h * w


def test_batch_images_needs_an_image():
    with pytest.raises(ValueError, match="at least one image"):
        batch_images([])
