"""DETR and Deformable DETR as one chain of parts: images in, boxes and class logits of every decoder layer out."""

import torch
from torch import Tensor, nn

from .neck import Tokenizer
from .structures import Predictions


class Detector(nn.Module):
    """A set-prediction detector in its parts.

    Args:
        backbone: images (N, 3, H, W) to feature maps by name.
        tokenizer: feature maps and mask to tokens.
        encoder: tokens to memory (N, S, C).
        queries: memory and tokens to the decoder's queries, learned or proposed; without a decoder, memory and tokens
            to logits and boxes.
        decoder: queries, memory and tokens to logits, boxes and the last layer's hidden states (N, Q, C); None for an
            encoder-only detector.
        no_object: whether the last logit stands for "no object".
        mask_head: feature maps, tokens, memory, hidden states, boxes and mask to mask logits; None for boxes only.
        freeze_detector: train the mask head only: everything else gets no gradient, and stays in evaluation mode, so
            that it is the detector that was trained before (no dropout, no new statistics of its norms).
    """

    def __init__(
        self,
        backbone: nn.Module,
        tokenizer: Tokenizer,
        encoder: nn.Module,
        queries: nn.Module,
        decoder: nn.Module | None,
        no_object: bool = False,
        mask_head: nn.Module | None = None,
        freeze_detector: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.encoder = encoder
        self.queries = queries
        self.decoder = decoder
        self.no_object = no_object
        self.mask_head = mask_head
        self.freeze_detector = freeze_detector
        if freeze_detector:
            for part in self._detector_parts():
                part.requires_grad_(False).eval()  # from the start: not everyone calls train()

    def _detector_parts(self) -> list[nn.Module]:
        return [part for name, part in self.named_children() if name != "mask_head"]

    def train(self, mode: bool = True) -> "Detector":
        """As ``nn.Module``'s; a frozen detector stays in evaluation mode."""
        super().train(mode)
        if self.freeze_detector:
            for part in self._detector_parts():
                part.eval()
        return self

    def forward(self, images: Tensor, padding_mask: Tensor) -> Predictions:
        """Detects.

        Args:
            images: (N, 3, H, W), normalised float32 RGB, zero on padding.
            padding_mask: (N, H, W) bool, True on padding, which lies right of and below each image.
        """
        features = self.backbone(images)
        tokens = self.tokenizer(features, padding_mask)
        memory = self.encoder(tokens)
        if self.decoder is None:
            logits, boxes = self.queries(memory, tokens)
            return Predictions(logits[None], boxes[None], no_object=self.no_object)
        queries = self.queries(memory, tokens)
        logits, boxes, hidden = self.decoder(queries, memory, tokens)
        masks = None
        if self.mask_head is not None:
            masks = self.mask_head(features, tokens, memory, hidden, boxes[-1], padding_mask)
        return Predictions(logits, boxes, queries.proposals, masks, self.no_object)


def batch_images(images: list[Tensor], size_divisibility: int = 0) -> tuple[Tensor, Tensor]:
    """Images (3, h, w) of any sizes to one batch (N, 3, H, W), zero on padding, and its mask (N, H, W).

    Args:
        images: at least one, all of one dtype and device.
        size_divisibility: make H and W multiples of it; 0 or 1 takes the largest height and width.
    """
    if not images:
        raise ValueError("batch_images needs at least one image")
    height, width = (max(image.shape[side] for image in images) for side in (-2, -1))
    if size_divisibility > 1:
        height, width = (-(-side // size_divisibility) * size_divisibility for side in (height, width))
    batch = images[0].new_zeros(len(images), images[0].shape[0], height, width)
    mask = torch.ones(len(images), height, width, dtype=torch.bool, device=images[0].device)
    for index, image in enumerate(images):
        batch[index, :, : image.shape[-2], : image.shape[-1]] = image
        mask[index, : image.shape[-2], : image.shape[-1]] = False
    return batch, mask
