"""Links lead somewhere: between pages, to their headings, and from programs to pages."""

import json
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob(".github/**/*.md")),
    *(p for p in sorted(ROOT.glob("docs/**/*.md")) if "_build" not in p.parts),
    *sorted(ROOT.glob("pdmd/**/*.md")),
    *sorted(ROOT.glob("examples/**/*.ipynb")),
]


def text_of(page):
    """Returns the text of a page without its code."""
    text = page.read_text()
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    text = re.sub(r"^(`{3,})(?!\{).*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"(?<!\{)`[^`\n]+`", "`code`", text)


def anchors_of(page):
    """Returns the anchors of a page: its headings as GitHub and MyST name them, and its labels."""
    text = re.sub(r"^(`{3,}).*?^\1$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ +(.*)$", text, re.MULTILINE)
    plain = [re.sub(r"\]\([^)]*\)|[^\w\- ]", "", heading.lower()) for heading in headings]
    return {p.replace(" ", "-") for p in plain} | set(re.findall(r"^\((.+)\)=$", text, re.M))


def links_of(page):
    text = text_of(page)
    targets = re.findall(r"\]\(\s*<?([^)>\s]*)>?(?:\s+\"[^\"]*\")?\s*\)", text)
    targets += re.findall(r"^(?:`{3}|:{3})\{(?:figure|image|literalinclude)\} +(\S+)$", text, re.M)
    return targets + re.findall(r"<(https?:[^>]*)>", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page):
    for target in links_of(page):
        parts = urlsplit(target)
        if parts.scheme:  # its form alone: no network
            assert parts.scheme == "https", target
            assert re.fullmatch(r"[\w.-]+\.[a-z]{2,}", parts.netloc), target
            continue
        place = (page.parent / parts.path).resolve() if parts.path else page
        assert place.exists(), target
        assert ROOT in place.parents, f"{target} leaves the repository"
        if parts.fragment:
            assert parts.fragment in anchors_of(place), target


def test_programs_name_pages_that_exist():
    for folder in ("pdmd", "examples", "benchmarks", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for name in re.findall(r"\bdocs/[\w/]+\.md\b", path.read_text()):
                assert (ROOT / name).exists(), (path, name)


def test_a_broken_link_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.test_links.ROOT", tmp_path)
    page, other = tmp_path / "page.md", tmp_path / "other.md"
    other.write_text("# A heading, with `code`\n\n```text\n# No heading\n```\n")
    for target, right in {
        "other.md#a-heading-with-code": True,
        "other.md": True,
        "https://example.org/x": True,
        "other.md#no-heading": False,
        "missing.md": False,
        "http://example.org": False,
        "../page.md": False,
    }.items():
        page.write_text(f"[text]({target})\n\n```text\n[code](nowhere.md)\n```\n")
        if right:
            test_links_of_a_page_lead_somewhere(page)
        else:
            with pytest.raises(AssertionError):
                test_links_of_a_page_lead_somewhere(page)
