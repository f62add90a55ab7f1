"""Sine embeddings against sums of sines and cosines, one number at a time."""

import math

import pytest
import torch

from projects_deformable_detr.modeling.position_encoding import SinePositionEmbedding, sine_box_embedding


def sine_channel(angle, channel, features):
    wavelength = 10000 ** (2 * (channel // 2) / features)
    return (math.sin if channel % 2 == 0 else math.cos)(angle / wavelength)


@pytest.mark.parametrize("centered", [True, False])
def test_grid_embedding_counts_on_the_image_without_padding(centered):
    channels, height, width = 8, 4, 6
    mask = torch.zeros(2, height, width, dtype=torch.bool)
    mask[1, 3:], mask[1, :, 4:] = True, True
    embedding = SinePositionEmbedding(channels, centered)(mask)
    assert embedding.shape == (2, channels, height, width)
    for image, (rows, columns) in enumerate(((height, width), (3, 4))):
        for y in range(rows):
            for x in range(columns):
                offset = 0.5 if centered else 0.0
                angles = ((y + 1 - offset) / rows * 2 * math.pi, (x + 1 - offset) / columns * 2 * math.pi)
                half = channels // 2
                expected = [sine_channel(angles[c // half], c % half, half) for c in range(channels)]
                torch.testing.assert_close(embedding[image, :, y, x], torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_an_image_is_embedded_as_it_is_alone():
    embed = SinePositionEmbedding(16)
    mask = torch.ones(1, 9, 11, dtype=torch.bool)
    mask[:, :5, :7] = False
    alone = embed(torch.zeros(1, 5, 7, dtype=torch.bool))
    assert torch.equal(embed(mask)[:, :, :5, :7], alone)


def test_box_embedding_is_each_coordinates_in_turn():
    boxes, features = torch.rand(2, 3, 4), 6
    embedding = sine_box_embedding(boxes, features)
    assert embedding.shape == (2, 3, 24)
    for image in range(2):
        for query in range(3):
            expected = [
                sine_channel(boxes[image, query, c // features].item() * 2 * math.pi, c % features, features)
                for c in range(24)
            ]
            torch.testing.assert_close(embedding[image, query], torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_channels_must_be_a_multiple_of_4():
    with pytest.raises(ValueError, match="d_model must be a multiple of 4.*got 6"):
        SinePositionEmbedding(6)
