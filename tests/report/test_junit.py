from xml.etree import ElementTree

from cbam_deploy.report.junit import Case, write_junit


def written(path, *cases, suite="parity"):
    write_junit(path, suite, cases)
    return ElementTree.parse(path).getroot()


def test_cases_are_counted_and_named(tmp_path):
    root = written(
        tmp_path / "junit.xml",
        Case("logits", passed=True, seconds=1.25),
        Case("gate 3", passed=False, message="too far off\nby 3.1e-2", seconds=0.5),
    )
    (suite,) = root
    for element in (root, suite):
        assert element.attrib["tests"] == "2"
        assert element.attrib["failures"] == "1"
        assert element.attrib["errors"] == "0"
        assert element.attrib["time"] == "1.750"
    assert suite.attrib["name"] == "parity"
    held, failed = suite
    assert held.attrib == {"classname": "parity", "name": "logits", "time": "1.250"}
    assert list(held) == []
    (failure,) = failed
    assert failure.attrib["message"] == "too far off"
    assert failure.text == "too far off\nby 3.1e-2"


def test_no_cases_make_an_empty_suite(tmp_path):
    (suite,) = written(tmp_path / "junit.xml")
    assert suite.attrib["tests"] == "0"
    assert list(suite) == []


def test_markup_is_escaped(tmp_path):
    hostile = '<a href="x">&]]></a>'
    (suite,) = written(
        tmp_path / "junit.xml", Case(hostile, passed=False, message=hostile), suite=hostile
    )
    assert suite.attrib["name"] == hostile
    assert suite[0].attrib["name"] == hostile
    assert suite[0][0].text == hostile


def test_characters_that_xml_cannot_hold_are_replaced(tmp_path):
    hostile = "a\x00b\x1bc\ud800d\ufffee\tf"
    (suite,) = written(tmp_path / "junit.xml", Case("x", passed=False, message=hostile))
    assert suite[0][0].text == "a\ufffdb\ufffdc\ufffdd\ufffde\tf"


def test_a_message_of_no_words_is_still_a_failure(tmp_path):
    (suite,) = written(tmp_path / "junit.xml", Case("x", passed=False))
    assert suite[0].find("failure") is not None
