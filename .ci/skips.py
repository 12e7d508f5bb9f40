"""Fail if a test was skipped for a reason that is not one of these.

Usage: skips.py JUNIT_XML ...
"""

from __future__ import annotations

import re
import sys
from itertools import chain
from xml.etree import ElementTree

# What no package on the machine that runs CI could change, as patterns of the reasons that pytest reports.
ALLOWED = (
    r"this machine does not let root mount a tmpfs",  # a container without that capability
    r"this processor or installation has no bfloat16 in OpenVINO",  # an instruction set of the processor
    r"\S+ works on this machine",  # what is said where there is no GPU, on a machine with one
    r"the package is installed, so its folder comes first",  # Debian's package of the data set
)


def main(*reports: str) -> int:
    """Print the skips that are not allowed, and reports of no test; return how the process exits."""
    cases = {
        report: [*ElementTree.parse(report).getroot().iter("testcase")]  # noqa: S314 - pytest wrote it
        for report in reports
    }
    skips = [f"all tests: {report} has none" for report, held in cases.items() if not held]
    skips += [
        f"{case.get('classname')}::{case.get('name')}: {skip.get('message')}"
        for case in chain.from_iterable(cases.values())
        for skip in case.iter("skipped")
        if not any(re.match(pattern, skip.get("message") or "") for pattern in ALLOWED)
    ]
    for skip in skips:
        print(f"Skipped, which CI does not allow: {skip}", file=sys.stderr)  # noqa: T201
    return 1 if skips else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
