"""Set-prediction detector: images to boxes and class logits of every decoder layer."""

from itertools import chain

import torch
from ms_deform_attn.layers import is_traced
from torch import Tensor, nn

from ..errors import ArgumentError, UserError, check_choice
from .mask_head import MaskHead
from .neck import Neck
from .padding import masked_features
from .structures import Predictions, output_shape

MASK_PADDING = ("inference", "always", "never")


class Detector(nn.Module):
    """DETR or Deformable DETR, composed of its parts.

    Args:
        backbone: maps images (N, 3, H, W) to feature maps by name.
        neck: maps feature maps and padding mask to tokens.
        encoder: maps tokens to memory (N, S, C).
        queries: maps memory and tokens to the decoder's initial queries; without a decoder, to logits and boxes.
        decoder: maps queries, memory and tokens to logits, boxes and the last layer's hidden states (N, Q, C); None
            for an encoder-only detector.
        no_object: whether the last logit is for "no object".
        mask_head: maps feature maps, tokens, memory, hidden states, boxes and padding mask to mask logits, or None.
        freeze_detector: whether to train the mask head only. All other parts get no gradient and stay in evaluation
            mode, so that dropout is off and batch-norm statistics are not updated.
        mask_padding: when predictions are independent of the padding of the batch. ``"inference"``: in evaluation mode
            only; training includes padding, as in the official code. ``"always"``: also in training, which needs a
            backbone that accepts a padding mask. ``"never"``: not at all, as in the official code. With
            ``"inference"``, traced and exported graphs include padding, and compiled and CUDA graphs exclude it if the
            backbone accepts a padding mask.
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: Neck,
        encoder: nn.Module,
        queries: nn.Module,
        decoder: nn.Module | None,
        no_object: bool = False,
        mask_head: MaskHead | None = None,
        freeze_detector: bool = False,
        mask_padding: str = "inference",
    ) -> None:
        super().__init__()
        check_choice("mask_padding", mask_padding, MASK_PADDING)
        if mask_padding == "always" and not getattr(backbone, "masks_padding", False):
            raise ArgumentError(
                "mask_padding",
                f"must not be 'always' for {type(backbone).__name__}, which does not accept a padding mask",
            )
        self.mask_padding = mask_padding
        self.backbone = backbone
        self.tokenizer = neck  # the name in state dicts
        self.encoder = encoder
        self.queries = queries
        self.decoder = decoder
        self.no_object = no_object
        self.mask_head = mask_head
        self.freeze_detector = freeze_detector
        if freeze_detector:
            for part in self._frozen_parts():
                part.requires_grad_(False)
            self.train()

    def _frozen_parts(self) -> list[nn.Module]:
        return [part for name, part in self.named_children() if name != "mask_head"]

    def train(self, mode: bool = True) -> "Detector":
        """Sets the mode; the parts of a frozen detector stay in evaluation mode."""
        super().train(mode)
        if self.freeze_detector:
            for part in self._frozen_parts():
                part.eval()
        return self

    def unused_features(self) -> set[str]:
        """Returns the names of unused feature maps; backbone parameters that affect no other map get no gradient."""
        used = {*self.tokenizer.in_features, *(self.mask_head.features if self.mask_head is not None else ())}
        return set(output_shape(self.backbone)) - used

    def forward(self, images: Tensor, padding_mask: Tensor) -> Predictions:
        """Predicts boxes, class logits and, with a mask head, masks.

        Args:
            images: (N, 3, H, W), normalized float32 RGB, zero on padding.
            padding_mask: (N, H, W) bool, True on padding, which must be to the right of and below each image.

        Raises:
            UserError: in evaluation mode, if predictions are not finite; the message names weights that are not finite.
        """
        _check_images(images, padding_mask)
        masks = None
        has_padding = self._may_have_padding(padding_mask)
        if is_masked := self._masks_padding(has_padding, padding_mask):
            features, masks = masked_features(self.backbone, images, padding_mask)
        else:
            features = self.backbone(images)
        tokens = self.tokenizer(features, padding_mask, masks, mask_padding=is_masked, has_padding=has_padding)
        memory = self.encoder(tokens)
        if self.decoder is None:
            logits, boxes = self.queries(memory, tokens)
            self._check_finite(images, logits, boxes)
            return Predictions(logits[None], boxes[None], no_object=self.no_object)
        queries = self.queries(memory, tokens)
        logits, boxes, hidden = self.decoder(queries, memory, tokens)
        self._check_finite(images, logits[-1], boxes[-1])
        mask_logits = None
        if self.mask_head is not None:
            mask_logits = self.mask_head(features, tokens, memory, hidden, boxes[-1], padding_mask, masks)
        return Predictions(logits, boxes, queries.proposals, mask_logits, self.no_object)

    def _may_have_padding(self, padding_mask: Tensor) -> bool:
        """Returns False if the mask is read and contains no padding."""
        if is_traced() or padding_mask.is_meta or _is_capturing(padding_mask):
            return True
        # Reading waits for a GPU, which is needed only to select the path of inference.
        if padding_mask.device.type != "cpu" and (self.training or self.mask_padding != "inference"):
            return True
        return bool(padding_mask.any())

    def _masks_padding(self, has_padding: bool, padding_mask: Tensor) -> bool:
        if self.training or self.mask_padding != "inference":
            return self.mask_padding == "always"
        # Exported graphs cannot depend on the values of the mask.
        if torch.jit.is_tracing() or torch.compiler.is_exporting() or padding_mask.is_meta:
            return False
        # Compiled and captured graphs cannot either; masking is correct with and without padding.
        if torch.compiler.is_compiling() or _is_capturing(padding_mask):
            return bool(getattr(self.backbone, "masks_padding", False))
        return has_padding  # a batch without padding takes the faster path

    def _check_finite(self, images: Tensor, logits: Tensor, boxes: Tensor) -> None:
        if self.training or is_traced() or images.is_meta or _is_capturing(images):
            return
        if bool(logits.isfinite().all() & boxes.isfinite().all()):
            return
        weights = chain(self.named_parameters(), self.named_buffers())
        broken = [name for name, value in weights if not value.isfinite().all()]
        if broken:
            shown = ", ".join(broken[:3]) + (f" and {len(broken) - 3} more" if len(broken) > 3 else "")
            raise UserError(f"weights are NaN or infinite: {shown}; the training that wrote them diverged")
        if not images.isfinite().all():
            raise UserError("images are NaN or infinite")
        raise UserError(
            f"predictions are NaN or infinite although weights and images are not: {logits.dtype} overflows"
        )


def _is_capturing(tensor: Tensor) -> bool:
    """Returns whether a CUDA graph is being captured, which does not permit reads by the host."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def _check_images(images: Tensor, padding_mask: Tensor) -> None:
    if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
        kind = str(images.dtype).removeprefix("torch.")
        raise ArgumentError("images", f"must be normalized floats (N, 3, H, W), got {kind} {tuple(images.shape)}")
    if padding_mask.shape != (images.shape[0], *images.shape[2:]) or padding_mask.dtype != torch.bool:
        kind = str(padding_mask.dtype).removeprefix("torch.")
        raise ArgumentError(
            "padding_mask",
            f"must be bool (N, H, W) for images {tuple(images.shape)}, got {kind} {tuple(padding_mask.shape)}",
        )


def batch_images(images: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Pads images (3, h, w) with zeros to a batch (N, 3, H, W) and returns it with its padding mask (N, H, W).

    Args:
        images: at least one image, all with the same dtype and device.
    """
    if not images:
        raise ValueError("batch_images needs at least one image")
    height, width = (max(image.shape[side] for image in images) for side in (-2, -1))
    batch = images[0].new_zeros(len(images), images[0].shape[0], height, width)
    mask = torch.ones(len(images), height, width, dtype=torch.bool, device=images[0].device)
    for index, image in enumerate(images):
        batch[index, :, : image.shape[-2], : image.shape[-1]] = image
        mask[index, : image.shape[-2], : image.shape[-1]] = False
    return batch, mask
