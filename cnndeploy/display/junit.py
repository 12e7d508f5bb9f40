"""A verification as JUnit XML, which CI systems show.

Source: the JUnit XML format as read by Jenkins and GitLab: testsuite, testcase, failure, properties.
"""

from __future__ import annotations

from xml.etree import ElementTree

from cnndeploy.verification.report import Verdict


def junit(verdict: Verdict) -> str:
    """Return one test suite with one test case, which failed unless the artifact passed."""
    failures = str(int(not verdict.passed))
    suite = ElementTree.Element("testsuite", name="cnndeploy verify", tests="1", failures=failures)
    properties = ElementTree.SubElement(suite, "properties")
    for name in verdict.figures:
        if (value := getattr(verdict, name)) is not None:  # else it was not compared
            ElementTree.SubElement(properties, "property", name=name, value=str(value))
    case = ElementTree.SubElement(suite, "testcase", classname=verdict.kind, name=verdict.artifact.path)
    if not verdict.passed:
        failure = ElementTree.SubElement(case, "failure", message=verdict.verdict)
        failure.text = "\n".join(verdict.reasons)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
