import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from cbam_deploy.comparison.layer_report import LayerError, LayerReport
from cbam_deploy.errors import BadInput
from cbam_deploy.graphs.origins import Place
from cbam_deploy.report.content import Figure, KeyFigure, Section, Table
from cbam_deploy.report.html import write_page
from cbam_deploy.studies.demonstration import DemoResult

VOID = {"meta", "link", "br", "hr", "img", "input"}
FETCHING = {"src", "srcset", "href", "xlink:href", "data", "action", "poster", "background"}


class Page(HTMLParser):
    """What a browser makes of a page: its elements, ids, words; open elements must be closed."""

    def __init__(self, path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def ids(self):
        return [attributes["id"] for _, attributes in self.elements if "id" in attributes]


def rendered(tmp_path, *sections, title="A title", subtitle=""):
    said = SimpleNamespace(title=title, subtitle=subtitle, sections=lambda: sections)
    write_page(said, tmp_path / "page.html")
    return Page(tmp_path / "page.html")


def assert_self_contained(page):
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.elements}
    for tag, attributes in page.elements:
        for name in FETCHING & attributes.keys():
            assert attributes[name].startswith("#"), (tag, name, attributes[name])
    fetched = re.findall(r"url\(([^)]*)\)|@import ([^;]*)", page.source)
    assert all(target.startswith("#") for target, _ in fetched), fetched
    # Addresses occur as names of XML namespaces and nowhere else.
    addresses = re.findall(r'[\w:]*="[a-z]+://[^"]*"|[a-z]+://\S+', page.source)
    assert all(address.startswith("xmlns") for address in addresses), addresses


def assert_references_resolve(page):
    ids = page.ids()
    assert len(ids) == len(set(ids))
    wanted = set(re.findall(r'(?:href="#|url\(#)([^")]+)', page.source))
    assert wanted <= set(ids)


def test_a_bench_page_is_self_contained(bench_report, tmp_path):
    write_page(bench_report, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert_self_contained(page)
    assert_references_resolve(page)
    assert sum(tag == "svg" for tag, _ in page.elements) == 2


def test_a_bench_page_has_the_numbers_with_their_units(bench_report, tmp_path):
    write_page(bench_report, tmp_path / "page.html")
    text = Page(tmp_path / "page.html").text
    for figure in (
        "25.00 ms",  # median of the fastest
        "42.7 images/s",  # throughput of the best
        "27.50 30.00 37.50",  # its p90, p95, p99
        "±2.0%",
        "66.1 MB",
        "400",
        "1.043",
        "1.021 to 1.066",
        "Fails where the whole interval is above 1.010.",
        "2,100 and 1,900 MHz",
        "Some GPU, compute capability 8.9, 24 GiB",
        "8.0 GiB",
        "OMP_NUM_THREADS=2",
        "torch 2.13.0",
        "a note",
        "a caution",
        "seed 0",
    ):
        assert figure in text, figure


@pytest.mark.parametrize(("held", "word"), [(True, "passed"), (False, "failed")])
def test_a_bench_page_says_whether_it_passed(bench_report, tmp_path, held, word):
    (verdict,) = bench_report.comparison.verdicts
    comparison = replace(bench_report.comparison, verdicts=(replace(verdict, held=held),))
    write_page(replace(bench_report, comparison=comparison), tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    badges = [a["class"] for tag, a in page.elements if tag == "span" and "class" in a]
    assert badges == [f"badge {'held' if held else 'failed'}"] * 2
    assert f"Benchmark {word}" in page.text
    assert ("slower" in page.text) != held
    assert ("in doubt" in page.text) == held


def test_a_bench_page_without_comparison_has_no_badge(bench_report, tmp_path):
    plain = [replace(entry, relative=None) for entry in bench_report.entries]
    alone = replace(bench_report, entries=tuple(plain), comparison=None, relative_to=None)
    write_page(alone, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert "badge" not in page.source.split("</style>")[1]
    assert "relative" not in page.text


HOSTILE = "<script>alert(1)</script>\"'&{{7*7}}$x$\ud800.onnx"


def test_hostile_names_are_shown_and_do_nothing(bench_report, tmp_path):
    entries = tuple(replace(entry, artefact=HOSTILE) for entry in bench_report.entries[:1])
    report = replace(
        bench_report,
        entries=entries,
        relative_to=None,
        comparison=None,
        notes=(HOSTILE,),
        environment={"cpu": HOSTILE, "packages": {}},
    )
    write_page(report, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert_self_contained(page)
    assert HOSTILE.replace("\ud800", "?") in page.text
    assert "49" not in page.text.split("$x$")[0].split("&")[-1]


def test_every_part_of_a_section_is_escaped(tmp_path):
    section = Section(
        title=HOSTILE,
        intro=HOSTILE,
        key_figures=(KeyFigure(HOSTILE, HOSTILE, HOSTILE),),
        figures=(Figure(lambda: "<svg></svg>", HOSTILE, HOSTILE),),
        tables=(Table((HOSTILE,), ((HOSTILE,),), HOSTILE),),
        failures=(HOSTILE,),
        notes=(HOSTILE,),
    )
    page = rendered(tmp_path, section, section, section, subtitle=HOSTILE)
    assert not any(tag == "script" for tag, _ in page.elements)
    # Per section: link to it, title, intro, three of the key figure, caption, three of the table,
    # failure, note; and the subtitle. The description is an attribute.
    assert page.text.count(HOSTILE.replace("\ud800", "?")) == 3 * 12 + 1


def test_plots_of_one_page_keep_their_own_ids(tmp_path):
    svg = (
        '<svg><g id="a"></g><use href="#a"/><use xlink:href="#a"/><path clip-path="url(#a)"/></svg>'
    )
    figure = Figure(lambda: svg, "", "")
    page = rendered(
        tmp_path, Section("one", figures=(figure, figure)), Section("two", figures=(figure,))
    )
    assert_references_resolve(page)
    assert page.source.count('clip-path="url(#plot-3-a)"') == 1


@pytest.mark.parametrize(
    ("outcomes", "badge"),
    [
        ((None, None), None),
        ((None, True), "passed"),
        ((True, False, None), "failed"),
    ],
)
def test_a_page_fails_when_a_section_does(tmp_path, outcomes, badge):
    sections = [Section(f"part {n}", passed=passed) for n, passed in enumerate(outcomes)]
    (title,) = re.findall(r"<h1>(.*?)</h1>", rendered(tmp_path, *sections).source, re.DOTALL)
    assert (re.findall(r">(\w+)</span>", title) or [None]) == [badge]


def test_rows_where_a_check_did_not_hold_stand_out(tmp_path):
    table = Table(("a", "b"), (("x", "1"), ("y", "2")), emphasized=(1,))
    page = rendered(tmp_path, Section("s", tables=(table,)))
    rows = [attributes for tag, attributes in page.elements if tag == "tr"]
    assert rows == [{}, {}, {"class": "emphasized"}]


def test_a_page_replaces_the_earlier_one_and_a_missing_folder_is_refused(tmp_path):
    (tmp_path / "page.html").write_text("earlier")
    rendered(tmp_path, Section("s"))
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    with pytest.raises(BadInput, match="gone"):
        rendered(tmp_path / "gone")


def demo(tmp_path, results):
    write_page(results, tmp_path / "demo.html")
    return Page(tmp_path / "demo.html")


def test_the_demo_page_tells_the_whole_road(tmp_path, results):
    page = demo(tmp_path, results)
    assert_self_contained(page)
    assert_references_resolve(page)
    text = page.text
    for title in (
        "Training",
        "ONNX file",
        "Parity with PyTorch",
        "Accuracy",
        "Grad-CAM",
        "TensorRT engine",
        "Latency and throughput",
        "Environment",
    ):
        assert text.count(title) >= 2, title  # in the navigation and as a heading
    for figure in (
        "90.00%",  # best epoch
        "2 min 5 s",
        "1.47 MB",
        "9 CbamGateAddRelu",
        "resize 32, crop 32, rgb, /255, mean 0.5 0.5 0.5, std 0.25 0.25 0.25",
        "2.7e-07",
        "98.44%",  # top-1 agreement
        "over 128 inputs",
        "131.2 dB",
        "98.61%",
        "-0.28",
        "5,678",
        "122 MB",
        "1x3x32x32 / 8x3x32x32 / 64x3x32x32",
        "2 native",
        "cd" * 32,
    ):
        assert figure in text, figure


def test_a_parity_page_shows_the_layer_at_fault(tmp_path, results):
    error = results.parity.batches[0].outputs[0].error
    good = LayerError(Place("relu_3", "n3", "CbamGate", "", ()), error, ())
    far = replace(error, max_relative=math.nan, snr_db=-math.inf)
    fault = LayerError(Place("relu_7", "n7", "CbamGate", "", ()), far, ("far",))
    layers = LayerReport("all", results.parity.tolerance, (good, fault), (), 0.1)
    page = demo(tmp_path, replace(results, parity=replace(results.parity, layers=layers)))
    assert "first fault at CbamGate n7" in page.text
    assert sum(a.get("class") == "emphasized" for _, a in page.elements) == 2  # and one of bench
    assert f"{DemoResult.title} failed" in page.text


def test_training_without_held_out_pictures_shows_what_there_is(tmp_path, results):
    epochs = (replace(e, val_loss=None, val_accuracy=None) for e in results.training.epochs)
    page = demo(tmp_path, replace(results, training=replace(results.training, epochs=(*epochs,))))
    assert "training pictures" in page.text
    assert "held-out" not in page.text


def test_templates_are_part_of_the_package():
    from importlib.resources import files

    names = {entry.name for entry in (files("cbam_deploy.report") / "templates").iterdir()}
    assert names == {"fragment.html", "page.html", "style.css"}
