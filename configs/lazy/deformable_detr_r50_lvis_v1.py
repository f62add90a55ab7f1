"""LVIS v1, images of rare classes repeated."""

from detectron2.config import LazyCall as L
from detectron2.data.samplers import RepeatFactorTrainingSampler

from projects_deformable_detr.detectron2_plugin.lvis_evaluation import ClassLVISEvaluator

from .common.recipe import drop_at
from .deformable_detr_r50_50ep import dataloader, model, optimizer, train

dataloader.train.dataset.names = "lvis_v1_train"
dataloader.train.sampler = L(RepeatFactorTrainingSampler)(
    repeat_factors=L(RepeatFactorTrainingSampler.repeat_factors_from_category_frequency)(
        dataset_dicts="${dataloader.train.dataset}", repeat_thresh=0.001
    )
)
dataloader.test.dataset.names = "lvis_v1_val"
dataloader.evaluator = L(ClassLVISEvaluator)(
    dataset_name="${..test.dataset.names}", output_dir="${train.output_dir}/inference", max_dets_per_image=300
)
model.detector.decoder.num_classes = 1203
model.load_options.class_names.dataset = "lvis_v1_train"
model.topk = 300
train.max_iter, train.checkpointer.period, train.eval_period = 156516, 3130, 31303
lr_multiplier = drop_at(125212, train.max_iter)
train.output_dir = "./output/deformable_detr_r50_lvis_v1"
