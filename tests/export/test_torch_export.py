"""torch.export of unmodified detectors: outputs are pytrees; batch size, height and width are dynamic."""

import pytest
import torch

from projects_deformable_detr import build_detector

FREE = torch.export.Dim.DYNAMIC
MASKS = {"MASK_ON": True, "HIDDEN_DIM": 128, "NHEADS": 8}


def check_export(detector, *, strict):
    example = torch.randn(2, 3, 96, 128), torch.zeros(2, 96, 128, dtype=torch.bool)
    free = {0: FREE, 2: FREE, 3: FREE}, {0: FREE, 1: FREE, 2: FREE}
    program = torch.export.export(detector, example, dynamic_shapes=free, strict=strict).module()
    for batch, height, width in ((3, 70, 97), (1, 128, 66)):
        inputs = torch.randn(batch, 3, height, width), torch.zeros(batch, height, width, dtype=torch.bool)
        expected, found = detector(*inputs), program(*inputs)
        assert found.no_object == expected.no_object
        torch.testing.assert_close(found.logits, expected.logits)
        torch.testing.assert_close(found.boxes, expected.boxes)
        if expected.proposals is not None:
            torch.testing.assert_close(found.proposals, expected.proposals)
        if expected.masks is not None:
            torch.testing.assert_close(found.masks.all(), expected.masks.all())


@pytest.mark.parametrize(("variant", "changes", "strict"), [("single_scale", MASKS, False), ("detr", {}, True)])
def test_detectors_are_exportable(make_cfg, variant, changes, strict):
    check_export(build_detector(make_cfg(variant, ENC_LAYERS=0, DEC_LAYERS=1, **changes)).eval(), strict=strict)


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("changes", [{}, MASKS], ids=["boxes", "masks"])
@pytest.mark.parametrize(
    "variant",
    [
        "single_scale",
        "single_scale_dc5",
        "multi_scale",
        "box_refine",
        "two_stage",
        "own_level",
        "detr",
        "detr_pre_norm",
    ],
)
def test_all_variants_are_exportable(make_cfg, variant, changes, strict):
    check_export(build_detector(make_cfg(variant, **changes)).eval(), strict=strict)
