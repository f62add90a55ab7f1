"""DETR (arXiv 2005.12872) on ResNet-50."""

from detectron2.config import LazyCall as L

from projects_deformable_detr.checkpoint import LoadOptions
from projects_deformable_detr.detectron2_plugin import DETR
from projects_deformable_detr.detectron2_plugin.data import class_names
from projects_deformable_detr.modeling import Detector, HungarianMatcher, SetCriterion
from projects_deformable_detr.modeling.backbone import ResNet
from projects_deformable_detr.modeling.build_detr import make_transformer_decoder, make_transformer_encoder
from projects_deformable_detr.modeling.classification import FocalClassification, SoftmaxClassification
from projects_deformable_detr.modeling.neck import Tokenizer
from projects_deformable_detr.modeling.position_encoding import SinePositionEmbedding
from projects_deformable_detr.modeling.queries import PositionQueries

model = L(DETR)(
    detector=L(Detector)(
        backbone=L(ResNet)(depth=50, out_features=["res5"], norm="FrozenBN", freeze_at=2),
        tokenizer=L(Tokenizer)(
            in_channels={"res5": 2048},
            channels=256,
            num_levels=1,
            position_embedding=L(SinePositionEmbedding)(channels="${..channels}", centred=False),
            norm=False,
            level_embed=False,
        ),
        encoder=L(make_transformer_encoder)(
            num_layers=6,
            channels="${..tokenizer.channels}",
            heads=8,
            hidden=2048,
            dropout=0.1,
            activation="relu",
            pre_norm=False,
        ),
        queries=L(PositionQueries)(num_queries=100, channels="${..tokenizer.channels}"),
        decoder=L(make_transformer_decoder)(
            num_layers=6,
            num_classes=80,
            channels="${..tokenizer.channels}",
            heads="${..encoder.heads}",
            hidden="${..encoder.hidden}",
            dropout="${..encoder.dropout}",
            activation="${..encoder.activation}",
            pre_norm="${..encoder.pre_norm}",
            no_object="${..no_object}",
        ),
        no_object=True,
    ),
    criterion=L(SetCriterion)(
        matcher=L(HungarianMatcher)(
            classification=L(SoftmaxClassification)(no_object_weight=0.1),
            class_weight=1.0,
            l1_weight=5.0,
            giou_weight=2.0,
        ),
        weights=dict(loss_ce=1.0, loss_bbox=5.0, loss_giou=2.0),
        deep_supervision=True,
    ),
    pixel_mean=[123.675, 116.280, 103.530],
    pixel_std=[58.395, 57.120, 57.375],
    topk=100,
    input_format="RGB",
    load_options=L(LoadOptions)(class_names=L(class_names)(dataset="coco_2017_train")),
)


def focal(model):
    """Focal loss with Deformable DETR's weights, without a logit for no object."""
    model.detector.no_object = False
    model.criterion.matcher.classification = L(FocalClassification)(alpha=0.25, gamma=2.0)
    model.criterion.matcher.class_weight = model.criterion.weights.loss_ce = 2.0
