"""Texts of others in cards stay texts."""

import ast
import html

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pdmd.export.markdown import escaped, one_line, quoted
from pdmd.files import is_hub_name

TEXTS = st.text() | st.text(r"""a1_ |<>&;[]()!`*\#~-'" """)


@given(TEXTS)
@example("<img src=x onerror=alert(1)>")
@example("[x](javascript:alert(1))")
@example("a | b `c` _d_ e_f &lt; *g*")
def test_an_escaped_text_is_shown_as_it_is(text):
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table")
    head = "| a | b |\n| --- | --- |\n| "
    shown, plain = (markdown.render(f"{head}x{cell}y | z |") for cell in (escaped(text), "Q"))
    assert html.unescape(shown) == plain.replace("Q", one_line(text))
    assert shown.count("<") == plain.count("<")


@given(TEXTS | st.text(st.characters(categories=["Cs", "Cc", "Zl", "So"])))
def test_a_quoted_text_is_a_string_of_python(text):
    line = quoted(text)
    assert ast.literal_eval(line) == text and line.isprintable()


@pytest.mark.parametrize("text", ["a_b", "someone/Wan2.2-T2V_A14B", "apache-2.0", "a (b), c: d"])
def test_plain_names_are_written_as_they_are(text):
    assert escaped(text) == text and quoted(text) == f'"{text}"'


@pytest.mark.parametrize(
    ("text", "is_name"),
    [
        ("someone/few-steps_1.0", True),
        ("someone", False),
        ("a/b/c", False),
        ("/b", False),
        ("a/b\n", False),
        ("a/<b>", False),
    ],
)
def test_names_on_the_hub_have_a_form(text, is_name):
    assert is_hub_name(text) is is_name
