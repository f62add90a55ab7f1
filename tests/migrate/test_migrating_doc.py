"""docs/migrating.md: its tables are the code's, its commands parse, its configs and documents are there."""

import argparse
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from projects_deformable_detr import get_cfg
from projects_deformable_detr.checkpoint import __main__ as checkpoint
from projects_deformable_detr.cli.arguments import argument_parser
from projects_deformable_detr.errors import UserError
from projects_deformable_detr.migrate import SOURCES, docs, translate
from projects_deformable_detr.migrate.__main__ import argument_parser as migrate_parser

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "migrating.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
LINES = [line for language, block in BLOCKS for line in block.splitlines() if not language]


def commands(program):
    found = [line.removeprefix(f"python {program} ") for line in LINES if line.startswith(f"python {program} ")]
    assert found, program
    return [shlex.split(line) for line in found]


def test_tables_are_the_codes():
    assert docs.renew(TEXT) == TEXT, "run: python -m projects_deformable_detr.migrate --write-docs docs/migrating.md"


def test_write_docs_renews_a_stale_table(run, tmp_path):
    path = tmp_path / "migrating.md"
    path.write_text(re.sub(r"\| `--lr` .*\n", "", TEXT), encoding="utf-8")
    assert run("--write-docs", path) == (0, "", "")
    assert path.read_text(encoding="utf-8") == TEXT


@pytest.mark.parametrize("text", ["", "<!-- options of official -->\n"])
def test_a_document_without_the_marks_is_refused(run, tmp_path, text):
    path = tmp_path / "x.md"
    path.write_text(text)
    status, _, said = run("--write-docs", path)
    assert status == 2 and "the document has 0 tables between" in said
    assert path.read_text() == text
    assert run("--write-docs", tmp_path / "none.md")[0] == 2


def test_every_source_has_its_part():
    for name in SOURCES:
        assert f"python -m projects_deformable_detr.migrate {name} " in TEXT


def write_a_file_of(source, path):
    """A small one of the name that a command has."""
    if source == "transformers":
        path.mkdir()
        (path / "config.json").write_text(json.dumps({"model_type": "deformable_detr", "num_queries": 77}))
    elif source == "official":
        torch.save({"model": {}, "args": argparse.Namespace(num_feature_levels=4, num_queries=77)}, path)
    else:
        torch.save({"state_dict": {}, "meta": {"cfg": "model = dict(type='DETR', num_queries=77)"}}, path)


@pytest.mark.parametrize("words", commands("-m projects_deformable_detr.migrate"), ids=" ".join)
def test_migrate_commands_run(run, tmp_path, monkeypatch, words):
    """With all their options, in a folder that has the files that they name."""
    monkeypatch.chdir(tmp_path)
    args = migrate_parser().parse_args(words[: words.index("--") if "--" in words else None])
    if args.from_checkpoint:
        write_a_file_of(args.source, tmp_path / args.from_checkpoint)
    status, out, said = run(*words)
    assert status == 0, said
    result = out
    if args.out:
        assert out.startswith(f"train_net.py --config-file {args.out}")
        cfg = get_cfg("standalone")
        cfg.merge_from_file(str(args.out))
        result = args.out.read_text()
    assert ("NUM_OBJECT_QUERIES" in result and "77" in result) == bool(args.from_checkpoint)
    batch = re.search(r"(\d+) images in a batch over (\d+) GPUs .*, (\d+) images in an epoch", said)
    if args.gpus:
        assert batch is not None and int(batch[2]) == args.gpus and int(batch[1]) == 2 * args.gpus
    if batch is not None:
        assert int(batch[3]) == args.images


def test_a_command_that_does_not_run_would_be_seen(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("official", "--from-checkpoint", "r50_deformable_detr.pth")[0] == 2


def test_train_net_commands_parse():
    for words in commands("train_net.py"):
        args = argument_parser().parse_args(words)
        assert (ROOT / args.config_file).is_file()
        assert len(args.opts) % 2 == 0


def test_checkpoint_commands_parse(monkeypatch):
    for words in commands("-m projects_deformable_detr.checkpoint"):
        monkeypatch.setattr("sys.argv", ["checkpoint", *words])
        args, opts = checkpoint._parse()
        assert args.command == "convert" and opts == []
        assert (ROOT / args.config_file).is_file()


def test_python_blocks_run():
    blocks = [block for language, block in BLOCKS if language == "python"]
    assert blocks
    code = "\n".join([*blocks, "import MultiScaleDeformableAttention"])
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_links_and_configs_are_there():
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", TEXT):
        assert (DOCUMENT.parent / link).is_file(), link
    for path in re.findall(r"`(tests/[\w/.]+)`", TEXT):
        assert (ROOT / path).is_file(), path


def test_nothing_is_assumed_of_an_unknown_config():
    with pytest.raises(UserError, match="is none of official's configs"):
        translate(SOURCES["official"], "r50_dino", {})
