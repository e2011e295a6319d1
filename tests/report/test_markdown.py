from cbam_deploy.report.content import Section, Table
from cbam_deploy.report.markdown import to_markdown


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
