"""The outcome of a step: each piece of evidence with its check."""

from dataclasses import dataclass, field
from typing import Any

from tour.evidence import Check, Evidence
from tour.lesson import Step


@dataclass(frozen=True)
class Finding:
    """One piece of evidence."""

    name: str
    check: Check
    value: Any
    source: str

    @property
    def holds(self) -> bool:
        """Whether the check holds."""
        try:
            return self.check.holds(self.value)
        except (TypeError, ValueError):  # a value of the wrong type
            return False


@dataclass
class Outcome:
    """The outcome of one step."""

    findings: list[Finding] = field(default_factory=list)
    error: str = ""
    unavailable: str = ""  # a service that is not available, and what to do

    @property
    def failed(self) -> bool:
        """Whether there was an error, or a check does not hold."""
        return bool(self.error) or any(not finding.holds for finding in self.findings)


def findings(step: Step, evidence: Evidence) -> list[Finding]:
    """The evidence of a step with its checks. Raises LookupError if their names differ."""
    if evidence.keys() != step.expect.keys():
        raise LookupError(f"evidence of {list(evidence)} for expectations of {list(step.expect)}")
    return [Finding(name, check, evidence[name].value, evidence[name].source) for name, check in step.expect.items()]
