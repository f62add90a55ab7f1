"""Detectron2's checkpointer, which refuses a file that fits only in part and knows the project's other formats."""

import os
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from ..checkpoint import CheckpointError, load_weights, write_atomically

# Detectron2 matches the names of these formats itself: Caffe2's and its own model zoo's, and pycls's.
_MATCHED_BY_DETECTRON2 = (".pkl", ".pyth", "?matching_heuristics=True")


class DetectorCheckpointer(DetectionCheckpointer):
    """Resumes and saves as Detectron2 does, and loads initial weights with nothing left out in silence.

    Initial weights may be a checkpoint of either engine, a torchvision ResNet's, or a backbone of Detectron2's own
    model zoo.

    Args:
        model: a meta-architecture with its weights in ``detector``, or one wrapped for distributed training.
        save_dir: where checkpoints are written and looked for.
        allow_partial: load what fits, and leave the rest as it is (``MODEL.DETR.ALLOW_PARTIAL_WEIGHTS``).
        checkpointables: as in Detectron2.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", *, allow_partial: bool = False, **checkpointables: Any):
        super().__init__(model, save_dir, **checkpointables)
        self.allow_partial = allow_partial

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Loads a checkpoint; with ``checkpointables=[]``, which means initial weights, in any format known.

        Raises:
            CheckpointError: listing what is missing and unexpected, or shaped otherwise.
        """
        if path and checkpointables == [] and not path.endswith(_MATCHED_BY_DETECTRON2):
            source = path if path.startswith("torchvision://") else self.path_manager.get_local_path(path)
            load_weights(self.model.detector, source, allow_partial=self.allow_partial)
            return {}
        return super().load(path, checkpointables)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        is_backbone_only = checkpoint.get("matching_heuristics", False)
        keys = super()._load_model(checkpoint)
        missing, unexpected = list(keys.missing_keys), list(keys.unexpected_keys)
        if is_backbone_only:
            # These files have a classifier that is left over and no transformer; the backbone must be whole.
            missing, unexpected = [key for key in missing if key.startswith("detector.backbone.")], []
        problems = [f"missing in the file: {key}" for key in missing]
        problems += [f"unexpected in the file: {key}" for key in unexpected]
        problems += [
            f"{key}: {found} in the file, {wanted} in the model" for key, found, wanted in keys.incorrect_shapes
        ]
        if problems and not self.allow_partial:
            raise CheckpointError(
                "the checkpoint does not fit the model; choose the config that it was trained with, or set "
                "MODEL.DETR.ALLOW_PARTIAL_WEIGHTS True to load what fits:\n  " + "\n  ".join(problems)
            )
        return keys

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes ``<name>.pth`` so that a run killed meanwhile leaves the file whole or does not leave it at all."""
        if not self.save_dir or not self.save_to_disk:
            return
        parts = {key: part.state_dict() for key, part in self.checkpointables.items()}
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        write_atomically(path, {"model": self.model.state_dict(), **parts, **kwargs})
        self.tag_last_checkpoint(os.path.basename(path))
