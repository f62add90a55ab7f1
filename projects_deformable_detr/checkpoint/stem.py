"""What Caffe2's ResNets want beyond names: BGR images and, but for those of group norm, strides in the 1x1."""

from collections.abc import Mapping

from torch import nn

from .files import CheckpointError

_BGR = "INPUT.FORMAT BGR, MODEL.PIXEL_MEAN [103.530,116.280,123.675]"


def check_caffe2(detector: nn.Module, state: Mapping[str, object], source: str, input_format: str) -> None:
    """Refuses a model for which the weights would load and mean something else.

    Raises:
        CheckpointError: naming every key that must be set.
    """
    group_norm = any("_gn_" in key for key in state)
    in_1x1 = strides_in_1x1(detector)
    wanted_in_1x1 = not group_norm
    if input_format == "BGR" and in_1x1 in (wanted_in_1x1, None):
        return
    std = "[57.375,57.120,58.395]" if group_norm else "[1.0,1.0,1.0]"
    keys = f"{_BGR}, MODEL.PIXEL_STD {std}, MODEL.RESNETS.STRIDE_IN_1X1 {wanted_in_1x1}"
    if wanted_in_1x1:
        keys += ", and Detectron2's MODEL.BACKBONE.NAME build_resnet_backbone, since ours strides in the 3x3"
    has = f"{input_format} images" + ("" if in_1x1 is None else f", strides in the {'1x1' if in_1x1 else '3x3'}")
    raise CheckpointError(
        f"{source}: these weights were trained in Caffe2, on BGR images and with strides in the "
        f"{'1x1' if wanted_in_1x1 else '3x3'} convolutions; the model has {has}. Set {keys}; or take "
        "torchvision://resnet50, which the configs are for"
    )


def strides_in_1x1(detector: nn.Module) -> bool | None:
    """Whether the ResNet's second stage halves its map in the first convolution; None where there is none such."""
    for name, module in detector.named_modules():
        if name.endswith(("layer2.0", "res3.0")):
            first, second = getattr(module, "conv1", None), getattr(module, "conv2", None)
            strides = [getattr(conv, "stride", None) for conv in (first, second)]
            if hasattr(module, "conv3") and None not in strides:
                return strides[0] in (2, (2, 2))
    return None
