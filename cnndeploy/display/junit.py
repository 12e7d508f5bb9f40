"""A verification as JUnit XML, which CI systems show.

Source: the JUnit XML format as read by Jenkins and GitLab: testsuite, testcase, failure, properties.
"""

from __future__ import annotations

from xml.etree import ElementTree

from cnndeploy.verification.budget_report import BudgetReport
from cnndeploy.verification.report import EquivalenceReport

_COMMON = ("runtime", "device", "images", "top1_agreement")
_FIGURES = (*_COMMON, "max_abs_error", "max_rel_error")
_BUDGET_FIGURES = (*_COMMON, "budget_points", "loss_points", "loss_low_points", "loss_high_points")


def junit(report: EquivalenceReport | BudgetReport) -> str:
    """One test suite with one test case, failed where the two are not equivalent, or the budget is not kept."""
    lossy = isinstance(report, BudgetReport)
    passed = report.within_budget if isinstance(report, BudgetReport) else report.equivalent
    failures = str(int(not passed))
    suite = ElementTree.Element("testsuite", name="cnndeploy verify", tests="1", failures=failures)
    properties = ElementTree.SubElement(suite, "properties")
    for name in _BUDGET_FIGURES if lossy else _FIGURES:
        ElementTree.SubElement(properties, "property", name=name, value=str(getattr(report, name)))
    case = ElementTree.SubElement(
        suite, "testcase", classname="budget" if lossy else "equivalence", name=report.artifact.path
    )
    if not passed:
        message = "not within budget" if lossy else "not equivalent"
        failure = ElementTree.SubElement(case, "failure", message=message)
        failure.text = "\n".join(report.reasons)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
