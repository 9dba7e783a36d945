"""Files of the repository that pages link to, as pages of the site.

Links in README, docs and RESULTS are written for the repository, where people read them too. On the site the pages of
`docs/` lie at its root, and all other files that are linked below `repository/`, under their own paths: Markdown as
pages, folders as lists, and other text as a page with the text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
DOCS, ELSEWHERE = "docs/", "repository/"
SHOWN = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/RESULTS.md",
    "infra/**/*",
    "jobs/*.yaml",
    "pipeline/tokenshard/engine/metrics.py",
    "schemas/*",
)
LINK = re.compile(r"(?<=\]\()(?P<path>[^()#:\s]+)?(?P<anchor>#[^()\s]*)?(?=\))")
LANGUAGES = {".json": "json", ".py": "python", ".yaml": "yaml"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what `SHOWN` names, and a list for each folder of it."""
    paths = sorted({path for pattern in SHOWN for path in ROOT.glob(pattern) if path.is_file()})
    names = [path.relative_to(ROOT).as_posix() for path in paths]
    for name, path in zip(names, paths, strict=True):
        text = path.read_text(encoding="utf-8")
        files.append(_page(config, name, text if path.suffix == ".md" else _quoted(name, text)))
    for folder in sorted({posixpath.dirname(name) for name in names if "/" in name}):
        if f"{folder}/README.md" not in names:
            inside = [name for name in names if posixpath.dirname(name) == folder]
            entries = "".join(f"- [{posixpath.basename(name)}]({posixpath.basename(name)})\n" for name in inside)
            files.append(_page(config, f"{folder}/index.md", f"# {folder}\n\n{entries}"))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links between files of the repository become links between pages."""
    uri = page.file.src_uri
    home = uri.removeprefix(ELSEWHERE) if uri.startswith(ELSEWHERE) else DOCS + uri

    def moved(match: re.Match[str]) -> str:
        path, anchor = match["path"], match["anchor"] or ""
        if not path:
            return anchor
        target = posixpath.normpath(posixpath.join(posixpath.dirname(home), path))
        return posixpath.relpath(_uri(target), posixpath.dirname(uri) or ".") + anchor

    return LINK.sub(moved, markdown)


def _uri(name: str) -> str:
    """Where a file or folder of the repository is on the site."""
    if name.startswith(DOCS):
        return name.removeprefix(DOCS)
    if (ROOT / name).is_dir():
        name = f"{name}/README.md" if (ROOT / name / "README.md").exists() else f"{name}/index.md"
    return ELSEWHERE + (name if name.endswith(".md") else f"{name}.md")


def _page(config: MkDocsConfig, name: str, text: str) -> File:
    uri = ELSEWHERE + (name if name.endswith(".md") else f"{name}.md")
    return File.generated(config, uri, content=text, inclusion=InclusionLevel.NOT_IN_NAV)


def _quoted(name: str, text: str) -> str:
    return f"# {name}\n\n````{LANGUAGES.get(Path(name).suffix, 'text')}\n{text}````\n"
