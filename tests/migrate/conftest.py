"""What the tests of migration share: their command line to a config of ours, as a person would do it."""

import pytest

from projects_deformable_detr import get_cfg
from projects_deformable_detr.migrate import __main__ as command


@pytest.fixture
def run(capsys):
    """``run(*words)`` to exit status, stdout and stderr."""

    def call(*words):
        status = command.main([str(word) for word in words])
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def migrate(run, tmp_path):
    """``migrate(*words, engine=…)`` to the config that ``--out`` writes, and what was said on stderr."""

    def call(*words, engine="standalone"):
        path = tmp_path / "ours.yaml"
        status, _, said = run(words[0], "--out", path, "--overwrite", *words[1:])
        assert status == 0, said
        cfg = get_cfg(engine)
        cfg.merge_from_file(str(path))
        return cfg, said

    return call
