import re

from cbam_deploy.report.content import Section, Table
from cbam_deploy.report.html import write_page
from cbam_deploy.report.markdown import to_markdown, write_summary
from cbam_deploy.report.result import Result


def test_sections_become_headings_tables_and_lists():
    table = Table(("name", "ms"), (("a.onnx", "1.2"),), caption="Latency.")
    section = Section(
        "Figures", "About.", passed=False, tables=(table,), failures=("slow",), notes=("mind",)
    )
    assert to_markdown("Title", [section]) == (
        "# Title\n\n## Figures: failed\n\nAbout.\n\nLatency.\n\n"
        "| name | ms |\n|---|--:|\n| a.onnx | 1.2 |\n\n- slow\n- mind\n"
    )


def test_names_are_shown_as_they_are():
    table = Table(("n",), (("a|b\nc",),))
    text = to_markdown("*x* <script>", [Section("[y](z)", tables=(table,))])
    assert r"# \*x\* &lt;script>" in text
    assert r"## \[y\](z)" in text
    assert r"| a\|b c |" in text


class Said(Result):
    title = "Parity"

    def sections(self):
        return (Section("Held", passed=True), Section("Machine", background=True))


def test_a_summary_is_added_to_what_github_collects_and_replaces_any_other_file(
    tmp_path, monkeypatch
):
    collected, other = tmp_path / "step", tmp_path / "s.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(collected))
    for path in (collected, collected, other, other):
        write_summary(Said(), path)
    text = "# Parity\n\n## Held: passed\n"
    assert collected.read_text() == f"{text}\n{text}\n"
    assert other.read_text() == text


def test_a_result_without_a_title_is_called_as_its_first_section_and_no_heading_comes_twice(
    tmp_path,
):
    class Untitled(Result):
        def sections(self):
            return (Section("Training", passed=True), Section("Curves"))

    assert Untitled().markdown() == "# Training: passed\n\n## Curves\n"
    assert Untitled().markdown("step").startswith("# step\n\n## Training: passed\n")
    write_page(Untitled(), tmp_path / "page.html")
    headings = re.findall(r"<(h\d|title)>(\w+)", (tmp_path / "page.html").read_text())
    assert headings == [("title", "Training"), ("h1", "Training"), ("h2", "Curves")]
