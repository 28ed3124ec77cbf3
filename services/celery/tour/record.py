"""What came of a step: each piece of evidence beside what must be seen."""

from dataclasses import dataclass, field
from typing import Any

from tour.lesson import Check, Evidence, Step


@dataclass(frozen=True)
class Finding:
    """One piece of evidence."""

    name: str
    check: Check
    value: Any
    source: str

    @property
    def holds(self) -> bool:
        """Whether it is what must be seen."""
        try:
            return self.check.holds(self.value)
        except (TypeError, ValueError):  # not even of the right kind
            return False


@dataclass
class Outcome:
    """Of one step."""

    findings: list[Finding] = field(default_factory=list)
    error: str = ""
    unavailable: str = ""  # a service that is not there, and what to do

    @property
    def failed(self) -> bool:
        """Whether something was not as it must be."""
        return bool(self.error) or any(not finding.holds for finding in self.findings)


def findings(step: Step, evidence: Evidence) -> list[Finding]:
    """The evidence of a step beside its expectations. Raises LookupError when they are not of the same things."""
    if evidence.keys() != step.expect.keys():
        raise LookupError(f"evidence of {list(evidence)} for expectations of {list(step.expect)}")
    return [Finding(name, check, evidence[name].value, evidence[name].source) for name, check in step.expect.items()]
