"""Writes the page."""

import os
from collections.abc import Callable, Sequence
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from ..checkpoint import atomic_file
from ..errors import UserError
from . import sections
from .predictions import ERROR_ANALYSIS, error_text, find_errors, find_test_sets
from .runs import Run, read_runs


def write_report(
    folders: Sequence[Path], output: Path, *, data: tuple[str, str] | None = None, weights: str | None = None
) -> list[Run]:
    """Writes a self-contained HTML page about one or several training runs.

    Args:
        folders: output folders of this project's engines or of Detectron2.
        output: the page.
        data: annotation file in COCO's format and image folder for the error analysis; None: the test sets of each
            run's config.
        weights: model for the error analysis instead of that of the run.

    Returns:
        The runs; `Run.missing` lists parts that the page lacks.

    Raises:
        UserError: if a folder has no files of a run, if no model can be analyzed on ``data`` or with ``weights``,
            or if the page cannot be written.
        ModuleNotFoundError: if hotcoco, jinja2 or matplotlib is not installed.
    """
    from jinja2 import Environment, PackageLoader

    for package in ("hotcoco", "matplotlib"):  # otherwise their sections would be omitted
        import_module(package)
    runs = read_runs([Path(folder) for folder in folders])
    if output.is_dir():
        raise UserError(f"{output} is a folder: name a file with --output, such as {output / 'report.html'}")
    parent = next(path for path in output.absolute().parents if path.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
        raise UserError(f"{output} cannot be written, because {parent} is not a writable folder: change --output")
    test_sets = [(run, item) for run in runs for item in find_test_sets(run, data)]
    found = [(run, find_errors(run, item, weights)) for run, item in test_sets]
    analyses = [(run, item) for run, item in found if item is not None]
    if not analyses and (data or weights):
        missing = [
            f"{run.name}: {reason}" for run in runs for part, reason in run.missing if part.startswith(ERROR_ANALYSIS)
        ]
        raise UserError(f"the errors cannot be analyzed: {'; '.join(missing)}")
    kinds = dict.fromkeys((metrics.data, metrics.kind) for run in runs for metrics in run.metrics)
    parts = [
        *_sections(runs, "Training", sections.training_sections, runs),
        *(part for kind in kinds for part in _sections(runs, "Metrics", sections.metrics_section, runs, *kind)),
        *_sections(runs, "Comparison of the errors", sections.errors_sections, [item for _, item in analyses]),
        *(
            part
            for run, item in analyses
            for part in _sections([run], f"{ERROR_ANALYSIS}: {item.label}", sections.analysis_section, run, item)
        ),
        *_sections(runs, "Data", sections.data_section, runs, test_sets),
        sections.config_section(runs),
        sections.environment_section(runs),
    ]
    parts.insert(0, sections.summary_section(runs))  # last, because the others add to `missing`
    environment = Environment(
        loader=PackageLoader(__package__, "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    title = ", ".join(run.name for run in runs)
    written = datetime.now().strftime("%Y-%m-%d %H:%M")
    shown = [section for section in parts if section.plots or section.tables or section.folded or section.pictures]
    page = environment.get_template("template.html").render(title=title, written=written, runs=runs, sections=shown)
    with atomic_file(output) as file:
        file.write(page.encode())
    return runs


def _sections(runs: Sequence[Run], name: str, function: Callable[..., Any], *arguments: object) -> list[Any]:
    """Returns the sections of a function; if it fails, adds the reason to ``missing`` of each run."""
    try:
        made = function(*arguments)
    except Exception as error:  # other parts of the page are still valid
        for run in runs:
            run.missing.append((name, error_text(error)))
        return []
    return made if isinstance(made, list) else [made]
