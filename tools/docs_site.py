"""Parts of the documentation site that mkdocs.yml cannot express: a hook of MkDocs and an extension of Griffe.

The hook names pages by their path in the repository, and adds the pages outside of ``docs/``. The extension gives each
parameter of a shared description, such as ``cost_class, cost_bbox: weights.``, a description of its own.
"""

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "ops/README.md", "benchmarks/README-op.md")
_SHARED = re.compile(r"^( +)(\w+(?:, \w+)+): (.+(?:\n\1 +.+)*)", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Returns the files of the site: those of the theme, of ``docs/``, and `PAGES`."""
    of_theme = [file for file in files if file.src_dir != config.docs_dir]
    paths = [f"docs/{file.src_uri}" for file in files if file.src_dir == config.docs_dir]
    pages = (File(path, str(ROOT), config.site_dir, config.use_directory_urls) for path in (*paths, *PAGES))
    return Files([*of_theme, *pages])


def _split(match: re.Match[str]) -> str:
    indent, names, description = match.groups()
    return "\n".join(f"{indent}{name}: {description}" for name in names.split(", "))


class SharedDescriptions(griffe.Extension):
    """Repeats the description of several parameters or attributes for each of them."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites the docstring of an object."""
        if obj.docstring:
            obj.docstring.value = _SHARED.sub(_split, obj.docstring.value)
