"""Makes the README the site's first page, and text of links that lead out of the documentation: a hook of mkdocs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|#)([^)\s]+)\)")


def on_files(files: Any, *, config: Any) -> Any:
    """Adds the README, whose links begin at the repository's root."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"\]\((?!https?:|#|docs/)", "](../", text).replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=text))
    return files


def on_page_markdown(text: str, *, page: Any, config: Any, files: Any) -> str:
    """Leaves the words of links to files of the repository, which have no page here."""
    text = text.replace("](../README.md", "](index.md")
    return LINK.sub(lambda found: found[1] if found[2].startswith("../") else found[0], text)
