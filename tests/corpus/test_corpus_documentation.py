"""Compares the policies of docs/data.md with those of the corpus."""

import re
from pathlib import Path

import pytest
from corpus_table import CASES

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
WORDS = {"accept": "accepted", "warn": "warning", "skip": "dropped", "error": "error"}


def documented():
    """Yields policy and start of each message in the tables of annotations, segmentations and images."""
    for line in TEXT.partition("## Pascal VOC")[0].splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 3 and re.search("error|warning|dropped", cells[1]):
            policy = "warning error dropped" if cells[1].startswith("as boxes") else cells[1]
            for message in re.findall(r"`([a-z][^`…]*?)(?: …|, of N|: of N|,)?(?: …)?`", cells[2]):
                yield policy, message.partition(":")[0]


@pytest.mark.parametrize(("policy", "message"), documented())
def test_documented_policies_are_those_of_the_corpus(policy, message):
    pattern = re.escape(message).replace("N", ".*")
    cases = [case for case in CASES if re.search(pattern, case.message.replace("\\", ""))]
    assert cases
    assert [case.name for case in cases if WORDS[case.policy] not in policy] == []
