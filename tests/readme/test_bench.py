"""`make bench-quick`, by what it prints and writes; with the plan `trial`, which has few and small samples."""

import json
import re
import subprocess

from readme.clone import Clone

PROJECT = "celery-stack-bench"


def test_bench_prints_a_line_for_each_contender(clone: Clone) -> None:
    output = clone.output("make bench-quick PLAN=trial")
    results = json.loads((clone.folder / "bench/results/trial/results.json").read_text())
    assert set(results["samples"]) == {"drain", "enqueue", "latency", "due"}, output
    for measurement, samples in results["samples"].items():
        for contender, rounds in samples.items():
            assert len(rounds) == 1, f"{measurement}: {contender}\n{output}"
            assert all(value > 0 for value in rounds[0].values()), f"{measurement}: {contender}: {rounds}"
            assert re.search(rf"^\| {contender} \| \d", output, re.MULTILINE), output
        image = clone.folder / f"bench/results/trial/{measurement}.png"
        assert image.read_bytes().startswith(b"\x89PNG"), image
    of_project = ["--all", "--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}"]
    assert subprocess.run(["docker", "ps", *of_project], capture_output=True, check=True).stdout == b""
