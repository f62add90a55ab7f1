"""What padding may not do: the transformer gives every image of a padded batch what it has alone."""

import math

import pytest
import torch

from projects_deformable_detr import build_detector
from projects_deformable_detr.modeling import batch_images
from projects_deformable_detr.modeling.neck import Neck
from projects_deformable_detr.modeling.position_encoding import SinePositionEmbedding
from projects_deformable_detr.modeling.structures import Tokens

CHANNELS = 64
# Sizes (H, W) of the levels: of each image alone, and of the batch that holds them.
SMALL, LARGE, BATCH = ((6, 5), (3, 3)), ((7, 9), (4, 5)), ((8, 9), (4, 5))


def make_tokens(images, batch, garbage):
    """Tokens of images, each a list of level values (H, W, C), in levels as large as ``batch`` says."""
    values, masks, positions, ratios = [], [], [], []
    embed = SinePositionEmbedding(CHANNELS)
    for level, (height, width) in enumerate(batch):
        mask = torch.ones(len(images), height, width, dtype=torch.bool)
        value = torch.full((len(images), height, width, CHANNELS), garbage)
        position = torch.full_like(value, garbage)
        for index, image in enumerate(images):
            h, w = image[level].shape[:2]
            mask[index, :h, :w] = False
            value[index, :h, :w] = image[level]
        position = torch.where(mask[..., None], position, embed(mask).permute(0, 2, 3, 1) + level)
        sizes = [image[level].shape for image in images]
        ratios.append(torch.tensor([[size[1] / width, size[0] / height] for size in sizes]))
        values.append(value.flatten(1, 2))
        positions.append(position.flatten(1, 2))
        masks.append(mask.flatten(1))
    return Tokens(
        torch.cat(values, 1), torch.cat(positions, 1), torch.cat(masks, 1), tuple(batch), torch.stack(ratios, 1)
    )


@torch.no_grad()
def transformer(detector, tokens):
    """Memory of the tokens that are image, references, logits and boxes, for each image."""
    memory = detector.encoder(tokens)
    queries = detector.queries(memory, tokens)
    logits, boxes, _ = detector.decoder(queries, memory, tokens)
    return [
        (memory[index][~tokens.padding_mask[index]], queries.reference[index], logits[:, index], boxes[:, index])
        for index in range(len(memory))
    ]


@pytest.mark.parametrize("garbage", [50.0, math.nan])
@pytest.mark.parametrize("variant", ["multi_scale", "box_refine", "two_stage"])
def test_every_image_of_a_padded_batch_has_what_it_has_alone(make_cfg, shake, variant, garbage):
    detector = shake(build_detector(make_cfg(variant, IN_FEATURES=["res4", "res5"], NUM_FEATURE_LEVELS=2))).eval()
    images = [[torch.randn(*size, CHANNELS) for size in sizes] for sizes in (SMALL, LARGE)]
    together = transformer(detector, make_tokens(images, BATCH, garbage))
    for image, sizes, found in zip(images, (SMALL, LARGE), together, strict=True):
        (alone,) = transformer(detector, make_tokens([image], sizes, garbage))
        for name, wanted, got in zip(("memory", "reference", "logits", "boxes"), alone, found, strict=True):
            assert got.isfinite().all(), name
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def tokenize(images):
    neck = Neck({"res4": 8, "res5": 8}, CHANNELS, 3, SinePositionEmbedding(CHANNELS)).eval()
    batch, mask = batch_images(images)
    height, width = batch.shape[-2:]
    sizes = [(-(-height // stride), -(-width // stride)) for stride in (16, 32)]
    features = {name: torch.randn(len(images), 8, *size) for name, size in zip(("res4", "res5"), sizes, strict=True)}
    with torch.no_grad():
        return neck(features, mask), mask


def test_valid_ratios_are_the_share_that_is_image():
    tokens, _ = tokenize([torch.ones(3, 128, 64), torch.ones(3, 64, 192)])
    assert tokens.spatial_shapes == ((8, 12), (4, 6), (2, 3))
    assert tokens.level_start_index == (0, 96, 120)
    assert tokens.values.shape == tokens.positions.shape == (2, 126, CHANNELS)
    torch.testing.assert_close(tokens.valid_ratios[0], torch.tensor([[1 / 3, 1.0]] * 3))
    torch.testing.assert_close(tokens.valid_ratios[1], torch.tensor([[1.0, 0.5]] * 3))
    assert tokens.padding_mask.sum(1).tolist() == [64 + 16 + 4, 48 + 12 + 3]


@pytest.mark.parametrize("size", [(1, 1), (33, 97), (97, 131), (130, 20)])
def test_masks_and_ratios_agree_and_leave_something_at_odd_sizes(size):
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


def test_positions_tell_levels_apart():
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


@pytest.mark.parametrize(("divisibility", "expected"), [(0, (7, 8)), (1, (7, 8)), (4, (8, 8)), (32, (32, 32))])
def test_batch_images_rounds_up_to_a_multiple(divisibility, expected):
    batch, mask = batch_images([torch.rand(3, 5, 8), torch.rand(3, 7, 4)], divisibility)
    assert batch.shape[-2:] == mask.shape[-2:] == expected


def test_batch_images_needs_an_image():
    with pytest.raises(ValueError, match="at least one image"):
        batch_images([])
