"""The table of the corpus: every input with its policy and message."""

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from corpus_annotations import ANNOTATIONS
from corpus_checkpoints import RUNS, WEIGHTS
from corpus_configs import CONFIGS
from corpus_files import FILES
from corpus_formats import FORMATS
from corpus_images import IMAGES
from corpus_inputs import Case
from corpus_masks import SEGMENTATIONS

from projects_deformable_detr.engine import is_installed

DATA = [*ANNOTATIONS, *FILES, *SEGMENTATIONS, *FORMATS]
OTHERS = [*IMAGES, *WEIGHTS, *RUNS, *CONFIGS]
CASES = [*DATA, *OTHERS]
ENGINES = {"standalone": "lightning", "detectron2": "detectron2"}  # engine: package
# Name of a row: engines in which its policy is not implemented yet.
NOT_IMPLEMENTED: dict[str, tuple[str, ...]] = {}


def rows(cases: Iterable[Case]) -> Iterator[Any]:
    """Yields parameters of a test, ``case`` and ``engine``, for every row and engine."""
    for case in cases:
        for engine in case.engines:
            package = ENGINES[engine]
            marks = [pytest.mark.skipif(not is_installed(package), reason=f"{package} is not installed")]
            if engine in NOT_IMPLEMENTED.get(case.name, ()):
                marks.append(pytest.mark.xfail(strict=True, reason="the policy is not implemented yet"))
            yield pytest.param(case, engine, id=f"{case.name}-{engine}", marks=marks)
