"""Hooks of mkdocs: pages from files outside docs/, and links that lead out of docs/.

README.md, CONTRIBUTING.md, CHANGELOG.md and the examples become pages of the site. Links between
documents are those of the repository; here they are pointed at these pages. A link to another file
of the repository, which has no page, becomes its text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}
PAGES |= {"CHANGELOG.md": "changelog.md"}
EXAMPLES = {f"examples/{path.name}": path for path in sorted((ROOT / "examples").glob("*.py"))}
PAGES |= {name: name.removesuffix(".py") + ".md" for name in EXAMPLES}
HOMES = {page: posixpath.dirname(source) for source, page in PAGES.items()}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages whose sources are outside docs/."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        if source in EXAMPLES:
            title = Path(source).stem.replace("_", " ").capitalize()
            text = f"# {title}\n\n`{source}`\n\n```python\n{text}```\n"
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point the links of a page at the pages of the site."""
    where = page.file.src_uri
    home = HOMES.get(where, posixpath.join("docs", posixpath.dirname(where)))

    def replaced(link: re.Match[str]) -> str:
        image, text, target, anchor = link.groups()
        if re.match(r"[a-z]+:", target):
            return link[0]
        source = posixpath.normpath(posixpath.join(home, target))
        on_site = PAGES.get(source, source.removeprefix("docs/"))
        if on_site == source and not source.startswith("docs/"):
            if not (ROOT / source).exists():
                return link[0]  # which the check of links reports
            return text
        to = posixpath.relpath(on_site, posixpath.dirname(where) or ".")
        return f"{image}[{text}]({to}{anchor or ''})"

    return LINK.sub(replaced, markdown)
