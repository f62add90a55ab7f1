"""Runs images, weights, output folders and configs of the corpus through train_net.py."""

import pytest
from corpus_table import OTHERS, rows


@pytest.mark.parametrize(("case", "engine"), rows(OTHERS))
def test_policy(case, engine, check_policy):
    check_policy(case, engine)
