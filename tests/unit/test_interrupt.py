"""Ctrl-C ends what it should, without a wall of text, and what undoes something goes on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stack.inside import Inside, backlog

ROOT = Path(__file__).parents[2]
# Answers each call with its number.
ANSWERS = "import json\nwhile line := input(): print(json.dumps({'number': (n := json.loads(line)[0]), 'result': n}))"


def test_a_program_of_the_image_prints_no_traceback() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "services/celery")}
    for error, printed in (("KeyboardInterrupt", ""), ("ValueError", "Traceback")):
        done = subprocess.run(
            [sys.executable, "-c", f"raise {error}"], env=environment, capture_output=True, text=True, check=False
        )
        assert done.stderr.startswith(printed)
        assert bool(done.stderr) == bool(printed)
        assert done.returncode


def test_an_interrupted_command_is_not_taken_for_a_missing_one(tmp_path: Path) -> None:
    """Ctrl-C reaches the script and the command that it runs, which then fails."""
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\ntrap '' INT\nkill -INT 0\nexit 1\n")
    python.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SETUP": "0"}
    done = subprocess.run(
        [ROOT / "scripts/engine.sh"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )
    assert (done.returncode, done.stderr) == (130, "")


def test_the_answer_of_an_interrupted_call_is_not_taken_for_the_next_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = Inside([sys.executable, "-u", "-c", ANSWERS])
    assert inside._process.stdout is not None

    def interrupted() -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(inside._process, "stdout", type("", (), {"readline": staticmethod(interrupted)}))
        with pytest.raises(KeyboardInterrupt):
            inside.call(backlog)
    assert inside.call(backlog) == 1
    inside._process.kill()
    inside._process.wait()
