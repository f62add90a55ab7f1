"""Runs the annotation files of the corpus through train_net.py."""

import pytest
from corpus_table import DATA, rows


@pytest.mark.parametrize(("case", "engine"), rows(DATA))
def test_policy(case, engine, check_policy):
    check_policy(case, engine)
