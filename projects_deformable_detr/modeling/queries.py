"""Initial queries of the decoder: learned object queries, or the encoder's best proposals (two-stage).

The encoder-only detector has no decoder; `EncoderDetections` returns the predictions of all tokens.
"""

import torch
from ms_deform_attn.layers import Linear
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import INVALID, BoxHead, at_least_float32, build_class_head, inverse_sigmoid
from .position_encoding import sine_box_embedding
from .structures import Queries, Tokens


class LearnedQueries(nn.Module):
    """Object queries of Deformable DETR: learned content and position, which predicts a reference point."""

    def __init__(self, num_queries: int, d_model: int) -> None:
        super().__init__()
        self.content = nn.Parameter(torch.randn(num_queries, d_model))
        self.position = nn.Parameter(torch.randn(num_queries, d_model))
        self.reference_points = Linear(d_model, 2)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def forward(self, memory: Tensor, tokens: Tokens) -> Queries:
        """Expands the queries to the batch size of memory (N, S, C)."""
        batch = memory.shape[0]
        # Uses float32 even with 16-bit weights or autocast, because bfloat16 rounds a point to 0.4 % of the image.
        device_type = "cpu" if memory.is_meta else memory.device.type  # the meta device has no autocast
        with torch.autocast(device_type, enabled=False):
            linear = self.reference_points
            inputs = (at_least_float32(tensor) for tensor in (self.position, linear.weight, linear.bias))
            reference = F.linear(*inputs).sigmoid()
        return Queries(
            self.content.expand(batch, -1, -1),
            self.position.expand(batch, -1, -1),
            reference.expand(batch, -1, -1),
        )


class PositionQueries(nn.Module):
    """Object queries of DETR (arXiv 2005.12872, section 3.2): learned positions, with zero content."""

    def __init__(self, num_queries: int, d_model: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(num_queries, d_model))

    def forward(self, memory: Tensor, tokens: Tokens) -> Queries:
        """Expands the queries to the batch size of memory (N, S, C)."""
        positions = self.position.expand(memory.shape[0], -1, -1)
        return Queries(torch.zeros_like(positions), positions, None)


class DenseHead(nn.Module):
    """Predicts a box and class logits for every token (arXiv 2010.04159, section 4.3, first stage)."""

    def __init__(self, d_model: int, num_classes: int) -> None:
        super().__init__()
        # Built in the order of random initialization, but registered in the order of the state dict.
        class_head, box_head = build_class_head(d_model, num_classes), BoxHead(d_model)
        self.output = Linear(d_model, d_model)
        self.output_norm = nn.LayerNorm(d_model)
        self.class_head: nn.Module = class_head
        self.box_head = box_head
        nn.init.xavier_uniform_(self.output.weight)

    def predict(self, memory: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """Maps memory (N, S, C) to logits (N, S, classes), boxes (N, S, 4) and a valid mask (N, S).

        Boxes are offsets to the anchors of `proposal_anchors`, which defines the mask.
        """
        anchors, valid = proposal_anchors(tokens)
        features = self.output_norm(self.output(memory.masked_fill(~valid[..., None], 0.0)))
        return self.class_head(features), (self.box_head(features) + anchors).sigmoid(), valid


class EncoderDetections(DenseHead):
    """Head of the encoder-only detector (arXiv 2010.04159, section 4.3): each token is an object query."""

    def forward(self, memory: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Maps memory (N, S, C) to logits (N, S, classes), -1e4 for invalid tokens, and boxes (N, S, 4)."""
        logits, boxes, valid = self.predict(memory, tokens)
        return logits.masked_fill(~valid[..., None], -INVALID), boxes


class ProposalQueries(DenseHead):
    """Queries from the Q best proposals of the encoder (two-stage; arXiv 2010.04159, appendix A.4).

    Args:
        num_queries: Q; if images have fewer tokens, every token is a query. In evaluation, the decoder ignores further
            queries of images with fewer valid tokens, so that their detections do not depend on the batch.
        d_model: C.
        num_classes: number of classes; the logit of class 0 is the objectness score.
    """

    def __init__(self, num_queries: int, d_model: int, num_classes: int) -> None:
        super().__init__(d_model, num_classes)
        self.num_queries = num_queries
        self.query = Linear(2 * d_model, 2 * d_model)
        self.query_norm = nn.LayerNorm(2 * d_model)
        nn.init.xavier_uniform_(self.query.weight)

    def forward(self, memory: Tensor, tokens: Tokens) -> Queries:
        """Maps memory (N, S, C) to Q queries with detached four-value references."""
        logits, boxes, valid = self.predict(memory, tokens)
        indices, found = _topk_valid(logits[..., 0].detach(), valid, self.num_queries)
        unused = F.pad(~found[:, 1:], (1, 0)) if self._may_repeat(tokens) else None  # the first query is always used
        reference = boxes.detach().gather(1, indices[..., None].expand(-1, -1, 4))
        embedding = sine_box_embedding(reference, memory.shape[-1] // 2)
        embedding = embedding.to(self.query.weight.dtype)
        positions, content = self.query_norm(self.query(embedding)).chunk(2, dim=-1)
        return Queries(content, positions, reference, (logits, boxes), unused)

    def _may_repeat(self, tokens: Tokens) -> bool:
        """Returns whether images of a batch in evaluation may have fewer valid tokens than queries.

        Without padding, more than 90 % of the tokens are valid. Traced, compiled and exported graphs depend neither on
        the padding nor, if exported, on the number of tokens; their `Tokens.has_padding` is True.
        """
        return not self.training and (tokens.has_padding or tokens.padding_mask.shape[1] < 2 * self.num_queries)


def proposal_anchors(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Computes one anchor per token and the mask of valid anchors.

    An anchor is centered on its token; its sides are 5 % of the image on the finest level and double with each level.

    Returns:
        anchors (N, S, 4) in inverse-sigmoid space, large and finite where invalid, and a bool mask (N, S): True for
        tokens that are not padding and whose anchor's coordinates are all in (0.01, 0.99).
    """
    centers = tokens.centers()
    levels = centers.split([height * width for height, width in tokens.spatial_shapes], dim=1)
    sizes = torch.cat([torch.full_like(part, 0.05 * 2.0**level) for level, part in enumerate(levels)], dim=1)
    anchors = torch.cat((centers, sizes), dim=-1)
    valid = ((anchors > 0.01) & (anchors < 0.99)).all(-1) & ~tokens.padding_mask
    return inverse_sigmoid(anchors).masked_fill(~valid[..., None], INVALID), valid


def _topk_valid(scores: Tensor, valid: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns indices (N, K) of the K = min(k, S) best valid tokens, best first, and the mask (N, K) of those found.

    In exported graphs, K = k.
    """
    # Images with fewer valid tokens repeat their best one, so that the shape does not depend on values on the device.
    scores = scores.masked_fill(~valid, torch.finfo(scores.dtype).min)
    if torch.compiler.is_exporting():
        # A static number of queries: ONNX and the constant folding of Inductor do not support min(k, S).
        scores, valid = F.pad(scores, (0, k), value=-torch.inf), F.pad(valid, (0, k))
        indices = scores.topk(k, dim=1).indices
    else:
        indices = scores.topk(min(k, scores.shape[1]), dim=1).indices
    found = valid.gather(1, indices)
    return torch.where(found, indices, indices[:, :1]), found
