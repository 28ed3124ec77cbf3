"""The fault table's figures, from a ledger."""

from faults.ledger import Applied, Submitted, Verdict


def test_what_a_fault_interrupted_has_begun_again_and_is_applied_after_so_many_seconds() -> None:
    runs = [
        *[("untouched", 5.0), ("killed", 9.0), ("killed during the fault", 10.5), ("retried before", 1.0)],
        *[("retried before", 2.0), ("killed", 25.0), ("killed during the fault", 27.0), ("killed", 40.0)],
        *[("after", 30.0), ("after", 90.0)],
    ]
    ends = {"untouched": 6, "retried before": 3, "killed": 26, "killed during the fault": 33, "after": 91}
    verdict = Verdict("kill", executing=1, held=0, published=1)
    submitted = Submitted()
    submitted.accepted.update(dict.fromkeys(ends, 1.0))
    verdict.judge(submitted, Applied(runs, list(ends.items())), begun=10, over=11, stopped=100)
    assert (verdict.lost, verdict.twice, verdict.again) == (0, 0, 5)
    assert verdict.resumed == 17
    assert verdict.redelivered == 23
