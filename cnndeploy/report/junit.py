"""A verification as JUnit XML, which CI systems show.

Source: the JUnit XML format as read by Jenkins and GitLab: testsuite, testcase, failure, properties.
"""

from __future__ import annotations

from xml.etree import ElementTree

from cnndeploy.equivalence.report import EquivalenceReport

_FIGURES = ("runtime", "device", "images", "max_abs_error", "max_rel_error", "top1_agreement")


def junit(report: EquivalenceReport) -> str:
    """One test suite with one test case, failed where the two are not equivalent."""
    failures = str(int(not report.equivalent))
    suite = ElementTree.Element("testsuite", name="cnndeploy verify", tests="1", failures=failures)
    properties = ElementTree.SubElement(suite, "properties")
    for name in _FIGURES:
        ElementTree.SubElement(properties, "property", name=name, value=str(getattr(report, name)))
    case = ElementTree.SubElement(suite, "testcase", classname="equivalence", name=report.artifact.path)
    if not report.equivalent:
        failure = ElementTree.SubElement(case, "failure", message="not equivalent")
        failure.text = "\n".join(report.reasons)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
