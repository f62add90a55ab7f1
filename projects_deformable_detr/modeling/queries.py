"""Where the decoder starts: learned object queries, or the encoder's best proposals (two-stage).

An encoder-only detector ends here, with the boxes of all tokens.
"""

import torch
from torch import Tensor, nn

from .encoder import cell_centres
from .heads import BoxHead, inverse_sigmoid
from .position_encoding import sine_box_embedding
from .structures import Queries, Tokens

# The unactivated coordinate of a proposal that must not be chosen: its sigmoid is 1 in every precision, and it
# is finite in half precision, so that adding to it never makes a NaN. Negated, the logit of what is no object.
_OUTSIDE = 1e4


class LearnedQueries(nn.Module):
    """Q learned queries, each with a content, a position and a reference point told from its position."""

    def __init__(self, num_queries: int, channels: int) -> None:
        super().__init__()
        self.content = nn.Parameter(torch.randn(num_queries, channels))
        self.position = nn.Parameter(torch.randn(num_queries, channels))
        self.reference_points = nn.Linear(channels, 2)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def forward(self, memory: Tensor, tokens: Tokens) -> Queries:
        """Memory (N, S, C) gives the batch size only."""
        batch = memory.shape[0]
        # In float32 under autocast too: bfloat16 would round a point to 0.4 % of the image, several pixels.
        with torch.autocast(memory.device.type, enabled=False):
            reference = self.reference_points(self.position).sigmoid()
        return Queries(
            self.content.expand(batch, -1, -1),
            self.position.expand(batch, -1, -1),
            reference.expand(batch, -1, -1),
        )


class PositionQueries(nn.Module):
    """DETR's object queries (arXiv 2005.12872, section 3.2): Q learned positions, a content of zeros."""

    def __init__(self, num_queries: int, channels: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(num_queries, channels))

    def forward(self, memory: Tensor, tokens: Tokens) -> Queries:
        """Memory (N, S, C) gives the batch size only."""
        positions = self.position.expand(memory.shape[0], -1, -1)
        return Queries(torch.zeros_like(positions), positions, None)


class TokenBoxes(nn.Module):
    """Every token tells a box and its classes: the first stage of Deformable DETR (arXiv 2010.04159, section 4.3).

    Args:
        channels: C.
        class_head: (…, C) to (…, classes).
        box_head: (…, C) to (…, 4), an offset to the token's own anchor.
    """

    def __init__(self, channels: int, class_head: nn.Module, box_head: BoxHead) -> None:
        super().__init__()
        self.output = nn.Linear(channels, channels)
        self.output_norm = nn.LayerNorm(channels)
        self.class_head = class_head
        self.box_head = box_head
        nn.init.xavier_uniform_(self.output.weight)

    def tell(self, memory: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """Memory (N, S, C) to logits (N, S, classes), boxes (N, S, 4), and usable (N, S): see `proposal_anchors`."""
        anchors, usable = proposal_anchors(tokens)
        features = self.output_norm(self.output(memory.masked_fill(~usable[..., None], 0.0)))
        return self.class_head(features), (self.box_head(features) + anchors).sigmoid(), usable


class EncoderDetections(TokenBoxes):
    """The encoder-only detector (arXiv 2010.04159, section 4.3): each pixel is an object query of its own."""

    def forward(self, memory: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Memory (N, S, C) to logits (N, S, classes), by which no unusable token is an object, and boxes (N, S, 4)."""
        logits, boxes, usable = self.tell(memory, tokens)
        return logits.masked_fill(~usable[..., None], -_OUTSIDE), boxes


class ProposalQueries(TokenBoxes):
    """Two-stage: of the tokens' boxes the best Q become queries (arXiv 2010.04159, appendix A.4).

    Args:
        num_queries: Q; fewer where the images have fewer tokens.
        channels: C.
        class_head: (…, C) to (…, classes); class 0 is read as objectness.
        box_head: (…, C) to (…, 4), an offset to the token's own anchor.
    """

    def __init__(self, num_queries: int, channels: int, class_head: nn.Module, box_head: BoxHead) -> None:
        super().__init__(channels, class_head, box_head)
        self.num_queries = num_queries
        self.query = nn.Linear(2 * channels, 2 * channels)
        self.query_norm = nn.LayerNorm(2 * channels)
        nn.init.xavier_uniform_(self.query.weight)

    def forward(self, memory: Tensor, tokens: Tokens) -> Queries:
        """Memory (N, S, C) to Q queries with four-value references, which carry no gradient."""
        logits, boxes, usable = self.tell(memory, tokens)
        chosen = _choose(logits[..., 0].detach(), usable, self.num_queries)
        reference = boxes.detach().gather(1, chosen[..., None].expand(-1, -1, 4))
        embedding = sine_box_embedding(reference, memory.shape[-1] // 2)
        positions, content = self.query_norm(self.query(embedding)).chunk(2, dim=-1)
        return Queries(content, positions, reference, (logits, boxes))


def proposal_anchors(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Every token's anchor and whether it may be chosen.

    An anchor is centred on its cell; its sides are 5 % of the image on the finest level, doubling with each.

    Returns:
        anchors (N, S, 4), before the sigmoid, large and finite where unusable; usable (N, S) bool: not padding,
        and the anchor's coordinates all within (0.01, 0.99).
    """
    boxes = []
    for level, (height, width) in enumerate(tokens.spatial_shapes):
        ratio = tokens.valid_ratios[:, level]
        x, y = cell_centres(height, width, ratio)
        centre = torch.stack((x / (ratio[:, :1] * width), y / (ratio[:, 1:] * height)), dim=-1)
        boxes.append(torch.cat((centre, torch.full_like(centre, 0.05 * 2.0**level)), dim=-1))
    anchors = torch.cat(boxes, dim=1)
    usable = ((anchors > 0.01) & (anchors < 0.99)).all(-1) & ~tokens.padding_mask
    return inverse_sigmoid(anchors).masked_fill(~usable[..., None], _OUTSIDE), usable


def _choose(scores: Tensor, usable: Tensor, count: int) -> Tensor:
    """(N, min(count, S)) indices of the best usable tokens, best first.

    An image with fewer usable tokens than that repeats its best one: the batch keeps its shape without asking
    the device how many there are, and no unusable token gets in.
    """
    scores = scores.masked_fill(~usable, torch.finfo(scores.dtype).min)
    chosen = scores.topk(min(count, scores.shape[1]), dim=1).indices
    return torch.where(usable.gather(1, chosen), chosen, chosen[:, :1])
