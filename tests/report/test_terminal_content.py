"""Content on a terminal: rows are lines, names are whole, and columns give way."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from cbam_deploy.report.content import Section, Table
from cbam_deploy.report.terminal import Shown

LONG = "/home/someone/projects/detector/models/resnet50_cbam_int8_percentile.onnx"
FIGURES = Table(
    ("name", "runtime", "median", "p99", "images/s"),
    (("a.onnx", "onnxruntime-cpu", "1.25", "12.5", "800"), ("b.onnx", "cpu", "9.75", "10", "102")),
    text_columns=2,
    spare=("p99", "images/s"),
)


def lines(*tables, width=80, **parts):
    terminal = io.StringIO()
    Console(width=width, file=terminal).print(Shown([Section("title", tables=tables, **parts)]))
    first, *rest = terminal.getvalue().splitlines()
    assert first.startswith("title")
    return rest


def test_a_row_is_a_line_with_figures_below_their_headings():
    assert lines(FIGURES) == [
        "name    runtime          median   p99  images/s",
        "a.onnx  onnxruntime-cpu    1.25  12.5       800",
        "b.onnx  cpu                9.75    10       102",
    ]


def test_columns_give_way_in_the_order_that_the_table_names():
    assert lines(FIGURES, width=46)[0] == "name    runtime          median  images/s"
    assert lines(FIGURES, width=32)[0] == "name    runtime          median"


def test_a_long_name_stays_whole_above_its_figures():
    rows = ((LONG, *FIGURES.rows[0][1:]), (LONG, *FIGURES.rows[1][1:]), FIGURES.rows[1])
    assert lines(replace(FIGURES, rows=rows)) == [
        "name",
        "  runtime          median   p99  images/s",
        LONG,
        "  onnxruntime-cpu    1.25  12.5       800",
        "  cpu                9.75    10       102",
        "b.onnx",
        "  cpu                9.75    10       102",
    ]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_sentences_wrap_below_themselves_at_whole_words(width):
    why = "its result leaves the graph as an output too, so the map before it cannot be left out"
    shown = lines(Table(("gate", "because"), (("gate1", why),), text_columns=2), width=width)
    assert shown[0].split() == ["gate", "because"]
    assert max(map(cell_len, shown)) <= width
    assert " ".join(line[7:] for line in shown[1:]) == why
    assert all(line.startswith(" " * 7) for line in shown[2:])


def test_wide_characters_count_as_wide():
    table = Table(("名前", "n"), (("模型.onnx", "1"), ("a", "22")))
    assert {cell_len(line) for line in lines(table)} == {13}


def test_a_name_with_line_breaks_is_one_line():
    assert lines(Table(("name", "n"), (("a\nb\tc", "1"),)))[1] == r"a\nb\tc  1"


def test_facts_have_no_headings_and_none_without_value():
    assert lines(Table.facts([("file", "a.onnx"), ("gates", ""), ("size", "3 MB")])) == [
        "file  a.onnx",
        "size  3 MB",
    ]


def test_a_value_too_wide_for_its_place_is_whole_below_its_name():
    facts = Table.facts([("made from the file", LONG), ("size", "3 MB")])
    assert lines(facts) == ["made from the file", f"  {LONG}", "size                3 MB"]


def test_what_failed_and_what_to_mind_come_last():
    shown = lines(FIGURES, intro="about", passed=False, failures=("too far",), notes=("mind",))
    assert shown[0] == "about"
    assert shown[-2:] == ["too far", "note: mind"]


def test_the_machine_is_left_to_pages_and_the_page_is_named():
    terminal = io.StringIO()
    Console(width=80, file=terminal).print(
        Shown([Section("a", passed=True), Section("b", background=True)], "out.html")
    )
    assert terminal.getvalue() == "a: passed\nopen out.html\n"
