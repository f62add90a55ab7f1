"""docs/migrating.md: its tables are the code's, its commands parse, its configs and documents are there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from projects_deformable_detr.checkpoint import __main__ as checkpoint
from projects_deformable_detr.cli import argument_parser
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


@pytest.mark.parametrize("words", commands("-m projects_deformable_detr.migrate"), ids=" ".join)
def test_migrate_commands_run(words):
    cut = words.index("--") if "--" in words else len(words)
    args, theirs = migrate_parser().parse_args(words[:cut]), words[cut + 1 :]
    source = SOURCES[args.source]
    if args.from_checkpoint:  # there is no such file here
        assert source.read is not None and not theirs
        return
    line = source.parse(source, theirs)
    assert translate(source, args.config or line.preset or source.default, line.values).base


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
