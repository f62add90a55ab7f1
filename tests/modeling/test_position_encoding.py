"""Position embeddings against scalar reference implementations."""

import math

import pytest
import torch

from projects_deformable_detr.errors import UserError
from projects_deformable_detr.modeling.position_encoding import (
    LearnedPositionEmbedding,
    SinePositionEmbedding,
    sine_box_embedding,
)


def sine_channel(angle, channel, features):
    wavelength = 10000 ** (2 * (channel // 2) / features)
    return (math.sin if channel % 2 == 0 else math.cos)(angle / wavelength)


@pytest.mark.parametrize("centered", [True, False])
def test_sine_embedding_ignores_padding(centered):
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


def test_sine_embedding_of_a_padded_image_equals_that_of_the_image():
    embed = SinePositionEmbedding(16)
    mask = torch.ones(1, 9, 11, dtype=torch.bool)
    mask[:, :5, :7] = False
    alone = embed(torch.zeros(1, 5, 7, dtype=torch.bool))
    assert torch.equal(embed(mask)[:, :, :5, :7], alone)


def test_box_embedding_concatenates_coordinates():
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


def test_d_model_must_be_a_multiple_of_4():
    with pytest.raises(ValueError, match="d_model must be a multiple of 4.*got 6"):
        SinePositionEmbedding(6)


def test_learned_embedding_encodes_x_then_y():
    embedding = LearnedPositionEmbedding(8, size=6)
    grid = embedding(torch.zeros(2, 3, 5, dtype=torch.bool))
    assert grid.shape == (2, 8, 3, 5)
    assert torch.equal(grid[1, :, 2, 4], torch.cat((embedding.column[4], embedding.row[2])))
    with pytest.raises(UserError, match="feature map of 7 x 5.*6 learned positions.*position_embedding_size"):
        embedding(torch.zeros(1, 7, 5, dtype=torch.bool))
