"""Deformable DETR (arXiv 2010.04159) on ResNet-50, multi-scale."""

from detectron2.config import LazyCall as L

from projects_deformable_detr.checkpoint import LoadOptions
from projects_deformable_detr.detectron2_plugin import DeformableDETR
from projects_deformable_detr.detectron2_plugin.data import class_names
from projects_deformable_detr.modeling import Detector, HungarianMatcher, SetCriterion
from projects_deformable_detr.modeling.backbone import ResNet
from projects_deformable_detr.modeling.build_deformable import make_decoder, make_encoder
from projects_deformable_detr.modeling.classification import FocalClassification
from projects_deformable_detr.modeling.heads import BoxHead, make_class_head
from projects_deformable_detr.modeling.neck import Tokenizer
from projects_deformable_detr.modeling.position_encoding import SinePositionEmbedding
from projects_deformable_detr.modeling.queries import EncoderDetections, LearnedQueries, ProposalQueries

model = L(DeformableDETR)(
    detector=L(Detector)(
        backbone=L(ResNet)(depth=50, out_features=["res3", "res4", "res5"], norm="FrozenBN", freeze_at=2),
        tokenizer=L(Tokenizer)(
            in_channels={"res3": 512, "res4": 1024, "res5": 2048},
            channels=256,
            num_levels=4,
            position_embedding=L(SinePositionEmbedding)(channels="${..channels}", centred=True),
        ),
        encoder=L(make_encoder)(
            num_layers=6,
            channels="${..tokenizer.channels}",
            heads=8,
            levels="${..tokenizer.num_levels}",
            points=4,
            hidden=1024,
            dropout=0.1,
            activation="relu",
            multi_scale=True,
        ),
        queries=L(LearnedQueries)(num_queries=300, channels="${..tokenizer.channels}"),
        decoder=L(make_decoder)(
            num_layers=6,
            num_classes=80,
            channels="${..tokenizer.channels}",
            heads="${..encoder.heads}",
            levels="${..tokenizer.num_levels}",
            points="${..encoder.points}",
            hidden="${..encoder.hidden}",
            dropout="${..encoder.dropout}",
            activation="${..encoder.activation}",
            refine=False,
            proposals=False,
        ),
    ),
    criterion=L(SetCriterion)(
        matcher=L(HungarianMatcher)(
            classification=L(FocalClassification)(alpha=0.25, gamma=2.0),
            class_weight=2.0,
            l1_weight=5.0,
            giou_weight=2.0,
        ),
        weights=dict(loss_ce=2.0, loss_bbox=5.0, loss_giou=2.0),
        deep_supervision=True,
    ),
    pixel_mean=[123.675, 116.280, 103.530],
    pixel_std=[58.395, 57.120, 57.375],
    topk=100,
    input_format="RGB",
    load_options=L(LoadOptions)(class_names=L(class_names)(dataset="coco_2017_train")),
)


def single_scale(model):
    """The last feature map only."""
    model.detector.backbone.out_features = ["res5"]
    model.detector.tokenizer.in_channels = {"res5": 2048}
    model.detector.tokenizer.num_levels = 1


def two_stage(model):
    """Box refinement from the encoder's best proposals."""
    detector = model.detector
    detector.queries = L(ProposalQueries)(
        num_queries=detector.queries.num_queries,
        channels="${..tokenizer.channels}",
        class_head=L(make_class_head)(channels="${..channels}", num_classes="${...decoder.num_classes}"),
        box_head=L(BoxHead)(channels="${..channels}"),
    )
    detector.decoder.refine = detector.decoder.proposals = True


def encoder_only(model):
    """Every token is a detection; there is no decoder."""
    model.detector.queries = L(EncoderDetections)(
        channels="${..tokenizer.channels}",
        class_head=L(make_class_head)(channels="${..channels}", num_classes=80),
        box_head=L(BoxHead)(channels="${..channels}"),
    )
    model.detector.decoder = None


def small(model, *, decoder_layers, num_queries, stem, res2):
    """A two-stage model of one encoder layer and 128 channels on a ResNet-18, to train from scratch."""
    backbone, tokenizer, encoder = (model.detector[name] for name in ("backbone", "tokenizer", "encoder"))
    backbone.depth, backbone.norm, backbone.freeze_at = 18, "BN", 0
    backbone.stem_channels, backbone.res2_channels = stem, res2
    tokenizer.in_channels = {"res3": 2 * res2, "res4": 4 * res2, "res5": 8 * res2}
    tokenizer.channels, tokenizer.num_levels = 128, 3
    encoder.num_layers, encoder.hidden, encoder.dropout = 1, 256, 0.0
    model.detector.decoder.num_layers = decoder_layers
    model.detector.queries.num_queries = num_queries
    two_stage(model)
