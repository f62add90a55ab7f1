"""The page: numbers, markup, several runs, missing parts, and the command."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from known_errors import CLASSES, CORRECT

from projects_deformable_detr.cli.main import main
from projects_deformable_detr.data.catalog import DatasetSpec
from projects_deformable_detr.data.coco import CocoRecords
from projects_deformable_detr.data.load import load_dataset
from projects_deformable_detr.report import sections
from projects_deformable_detr.report.analysis import analyze
from projects_deformable_detr.report.plots import Curve, plot

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Checks that elements are closed in order and ids are unique; collects texts, tables and elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert not self.open
        ids = Counter(attributes["id"] for _, attributes in self.elements if "id" in attributes)
        assert max(ids.values()) == 1
        for _, attributes in self.elements:
            for value in attributes.values():
                for target in re.findall(r"^#(.*)|url\(#(.*?)\)", value or ""):
                    assert target[0] or target[1] in ids

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"th", "td"} & {*self.open[-2:]}:  # also of links in cells
            self.rows[-1][-1] += data

    def row(self, name: str) -> list[str]:
        """Cells of the only row of this name, without the name."""
        (row,) = [row for row in self.rows if row and row[0] == name]
        return row[1:]


def report(*words: str | Path) -> tuple[Page, str]:
    """Runs the command; returns the page and its text."""
    output = Path(words[0]) / "report.html"
    assert main(["report", *map(str, words)]) == 0
    text = output.read_text()
    assert not re.search(r"https?://|src=\"(?!data:)|@import|<script|<link", text)
    return Page(text), text


def test_numbers_of_one_run(make_run: Callable[..., Path]) -> None:
    folder = make_run("a&b")
    page, text = report(folder)
    values = {}
    for line in (folder / "metrics.json").read_text().splitlines():
        values |= json.loads(line)
    for name in ("AP75", "APs", "APm", "AR", *(f"AP-{name}" for name in CLASSES.values())):
        assert page.row(name) == [f"{values[f'bbox/{name}']:.2f}".replace("nan", "–")]
    assert page.row("APs") == page.row("APl") == ["–"]
    assert [row[1:] for row in page.rows if row[:1] == ["AP"]] == 2 * [[f"{values['bbox/AP']:.2f}"]]
    assert page.row("last bbox AP") == page.row("best bbox AP") == [f"{values['bbox/AP']:.2f} after 60 iterations"]
    assert page.row("model") == ["DETR, ResNet-18"]
    assert page.row("images per second") == ["8.0"] and page.row("time waiting for data") == ["25 %"]
    for kind in ("classification", "localization", "both", "duplicate", "background", "missed"):
        assert page.row(kind)[0] == "1"
    assert "saved by the evaluation after 60 iterations. Errors are those of boxes; masks" in text
    found, objects = len(CORRECT) + 1, len(CORRECT) + 4
    assert page.row("recall") == [f"{found / objects:.3f}"]
    assert page.row("images") == [str(max(CORRECT))] and page.row("crowds") == ["1"]
    assert page.row("medium objects") == page.row("objects") == [str(objects)]
    pictures = [item for tag, item in page.elements if tag == "img"]
    assert len(pictures) == 5 + 3 and all(str(item["src"]).startswith("data:image/jpeg;") for item in pictures)
    links = {item["href"] for tag, item in page.elements if tag == "a"}
    assert links >= {"#configs", "#missing", "#missing0"}
    assert "MAX_ITER: 60" in text and page.row("Memory")[0].startswith("log.txt has no max_mem")

    assert "<b>" not in text and "&lt;b&gt;cat&lt;/b&gt;" in text and "dog &amp; $x$" in text
    assert "<b>cat</b>" in {row[0] for row in page.rows if row}


def test_several_runs(make_run: Callable[..., Path], results: list[dict[str, Any]]) -> None:
    first = make_run("first")
    config = (first / "config.yaml").read_text().replace("0.5", "0.25") + "VERSION: 2"
    config = config.replace("TRAIN: []", "TRAIN: [absent]").replace("[[known", "[[absent, /nope.json, /nope], [known")
    second = make_run("second", config=config, found=results[:1])
    for folder, ap in (first, 5), (second, 7):
        lines = [{"iteration": i, "segm/AP": ap - i / 10, "panoptic_seg/PQ": 2 * ap} for i in (9, 19)]
        with (folder / "metrics.json").open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    page, text = report(first, second)
    assert page.row("last segm AP") == ["3.10 after 20 iterations", "5.10 after 20 iterations"]
    assert page.row("best segm AP") == ["4.10 after 10 iterations", "6.10 after 10 iterations"]
    assert page.row("last PQ") == ["10.00 after 20 iterations", "14.00 after 20 iterations"]
    assert page.row("missing parts") == ["2", "3"] and "/nope.json" in page.row("Summary of absent")[0]
    assert page.row("SOLVER.BASE_LR") == ["0.5", "0.25"] and page.row("VERSION") == ["–", "2"]
    assert "Keys that not all configs have: 1<" in text
    assert ["SOLVER.MAX_ITER"] not in [row[:1] for row in page.rows]
    (change,) = [row for row in page.rows if row[:1] == ["second on known_val"]]
    ap = [row[1:] for row in page.rows if row[:1] == ["AP"] and "–" not in row][0]
    assert change[1] == "first on known_val" and float(change[4]) < 0
    assert float(change[2]) == pytest.approx(float(ap[1]) - float(ap[0]), abs=0.011)
    assert page.row("missed")[:4:2] == ["1", str(len(CORRECT) + 3)]
    assert text.count('aria-label="total loss"') == 1 and text.count('aria-label="loss_ce"') == 2
    assert text.count('aria-label="AP"') == text.count('aria-label="PQ"') == 1  # one curve per run


def test_models_are_compared_on_each_data_set(
    known_data: tuple[str, str], results: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sections, "compare", lambda a, b: dict.fromkeys(("delta", "lower", "upper"), 1.0))
    analyses = []
    for data in ("x", "y"):
        records = load_dataset(DatasetSpec(data, *known_data), for_evaluation=True)
        assert isinstance(records, CocoRecords)
        analyses += [analyze(records, results, 100, run, "") for run in "ab"]
    (section,) = sections.errors_sections(analyses[::2] + analyses[1::2])
    *_, table = section.tables.values()
    assert [row[:2] for row in table.rows] == [["b on x", "a on x"], ["b on y", "a on y"]]


def test_missing_parts_are_named(make_run: Callable[..., Path], tmp_path: Path) -> None:
    empty = make_run("empty", config=None, lines=[], found=None)
    (empty / "inference").rmdir()
    (empty / "metrics.json").write_text("")
    other = make_run(
        "other",
        config="DATASETS: {TEST: [unknown_val]}",
        found=None,
        lines=[
            {"iteration": 0, "x/y": 1, "lr": 1, "attention/negative_entropy_0": -2, "attention/negative_entropy_1": -1}
        ],
    )
    page, text = report(empty, other)
    assert "the test set is unknown: name its files with --data JSON IMAGES" in text
    assert "the data set unknown_val is not registered" in text
    assert page.row("state") == ["no training", "not finished: 1 iterations"] and 'aria-label="x/y"' in text
    assert "other: other values" in text and ">layer 1<" in text


def test_narrow_logarithmic_axes_have_several_labels() -> None:
    assert len(re.findall(r">1\.\d+<", plot("", [Curve("a", {10: 1.65, 20: 1.95})], log=True))) > 2


def test_images_that_cannot_be_read(make_run: Callable[..., Path], known_data: tuple[str, str], tmp_path: Path) -> None:
    folder, images = make_run(), tmp_path / "images"
    shutil.copytree(known_data[1], images)
    (images / "1.png").write_bytes(b"x")
    page, text = report(folder, "--data", known_data[0], images)
    assert "1.png (1 bytes) is not an image" in page.row("Pictures of run on known.json")[0] and "<img" not in text
    assert page.row("missed")[0] == "1"


def test_command_errors(make_run: Callable[..., Path], tmp_path: Path, capsys: Any) -> None:
    folder = make_run()
    for words, message in (
        ([tmp_path / "nowhere"], "there is no such output folder"),
        ([folder / "config.yaml"], "config.yaml is a file: name its folder"),
        ([folder, folder], "the same folder is given twice"),
        ([folder, "--output", tmp_path], f"{tmp_path} is a folder: name a file with --output"),
        ([folder, "--output", folder / "config.yaml" / "x"], "config.yaml is not a writable folder"),
        ([folder, "--data", "/nope.json", "/nope"], "the errors cannot be analyzed: run: "),
        ([folder, "--weights", "/nope"], "/nope"),
        ([folder, tmp_path, "--weights", "w.pth"], "--weights is for one output folder"),
    ):
        assert main(["report", *map(str, words)]) == 2
        assert message in capsys.readouterr().err and not (folder / "report.html").exists()


def test_missing_error_analyses_are_printed(make_run: Callable[..., Path], capsys: Any) -> None:
    report(make_run(config="DATASETS: {TEST: [unknown_val]}"))
    out = capsys.readouterr()
    assert "report.html: " in out.out
    assert out.err.startswith("run: without error analysis: the data set unknown_val is not registered")


def test_a_section_that_fails_does_not_lose_the_page(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no font")

    monkeypatch.setattr(sections.panels, "training_panels", fail)
    monkeypatch.setattr(sections, "missed_pictures", fail)
    page, _ = report(make_run())
    assert page.row("Training") == page.row("Pictures of run on known_val") == ["RuntimeError: no font"]
    assert page.row("missed")[0] == "1"
