"""The project's ResNet as a Detectron2 backbone."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone

from ..errors import UserError
from ..modeling.backbone import ResNet, build_resnet

# The ResNet already speaks Detectron2's protocol. A virtual subclass instead of a wrapper keeps parameter
# names, and so checkpoints, the same in both engines.
Backbone.register(ResNet)


@BACKBONE_REGISTRY.register()
def build_deformable_detr_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """The ResNet of ``cfg.MODEL.RESNETS`` with torchvision's parameter names.

    It also serves Detectron2's other meta-architectures and its FPN builder's bottom-up part.

    Raises:
        UserError: for another number of input channels than three, and for values that ``build_resnet`` refuses.
    """
    if input_shape.channels != 3:
        raise UserError(f"the ResNet takes 3 channels, but MODEL.PIXEL_MEAN has {input_shape.channels}")
    backbone = build_resnet(cfg)
    # What Detectron2's Backbone adds to the protocol: any height and width will do.
    backbone.size_divisibility = 0  # type: ignore[assignment]
    backbone.padding_constraints = {}  # type: ignore[assignment]
    return backbone
