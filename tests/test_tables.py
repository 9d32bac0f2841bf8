"""Tables as text and as HTML."""

from pdmd.tables import Table, counted


def test_columns_are_aligned_and_texts_are_escaped():
    table = Table(heading=("a", "long"), rows=[("1 < 2", "x"), ("3", "y")], caption="two & more")
    assert str(table).splitlines() == ["a      long", "1 < 2  x", "3      y", "two & more"]
    page = table._repr_html_()
    assert "<td>1 &lt; 2</td>" in page and "two &amp; more" in page and "1 < 2" not in page
    assert page.count("<tr>") == 3 and page.count("<th>") == 2


def test_a_number_has_its_noun():
    assert [counted(n, "phase") for n in (1, 2)] == ["1 phase", "2 phases"]
