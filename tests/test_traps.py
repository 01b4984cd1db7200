"""What looks ill and is not stays free of errors, and of the finding it resembles."""

from __future__ import annotations

from zoo import Case
from zoo.checks import QUIET, check_case, expectation, parametrize
from zoo.traps import TRAPS

pytestmark = QUIET


@parametrize(TRAPS)
def test_a_trap_gets_no_error_and_not_the_finding_it_resembles(case: Case):
    report = check_case(case)
    errors = [finding for finding in report.findings if finding.severity == "error"]
    assert not errors, "\n".join(map(str, errors))
    expectation(case, report)
