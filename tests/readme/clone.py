"""A clone of the project in an empty folder, as a new user has it."""

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = "celery-stack-readme"
TIMEOUT = 1200  # s, for a command


class Shell:
    """A shell in a project's folder."""

    def __init__(self, folder: Path, project: str) -> None:
        """`project`: its name in Compose."""
        self.folder, self.project = folder, project
        knobs = re.findall(r"^(\w+)=", (folder / ".env.example").read_text(), re.MULTILINE)
        # Without variables of other tests and of an outer make: a make inside another one prints the folders it enters.
        ours = {*knobs, "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PART", "STARTED", "COMPOSE_PROJECT_NAME"}
        clean = {name: value for name, value in os.environ.items() if name not in ours}
        # As set by a user whose machine also runs other programs.
        ports = {name: "0" for name in knobs if name.endswith("_PORT")}
        self.environment = {**clean, **ports}
        # Containers of a run that was killed: `make up` refuses a project that another folder has started.
        mine = f"--filter label=com.docker.compose.project={project}"
        self.run(f"docker ps --all --quiet {mine} | xargs --no-run-if-empty docker rm --force")

    def run(self, command: str, **environment: str) -> tuple[int, str]:
        """Run a shell command; returns its exit code and all its output."""
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT,
        )
        return done.returncode, re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", done.stdout)

    def output(self, command: str) -> str:
        """Run a command that must succeed; returns all its output."""
        code, output = self.run(f"set -e\n{command}")
        assert code == 0, f"{command}\n{output}"
        return output

    def containers(self, service: str) -> int:
        """The number of running containers of a service."""
        _, output = self.run(f"docker compose ps --quiet {service}")
        return len(output.split())

    def left(self, kind: str) -> str:
        """The containers, volumes and networks of this project that still exist."""
        return self.run(f"docker {kind} ls --quiet --filter label=com.docker.compose.project={self.project}")[1].strip()


class Clone(Shell):
    """A clone in an empty folder, with its own project name."""

    def __init__(self, folder: Path) -> None:
        files = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=ROOT,
            check=True,
            capture_output=True,
        ).stdout
        subprocess.run(["tar", "-C", folder, "-x"], input=self._tar(files), check=True)
        super().__init__(folder, PROJECT)
        self.environment["COMPOSE_PROJECT_NAME"] = PROJECT

    @staticmethod
    def _tar(files: bytes) -> bytes:
        return subprocess.run(
            ["tar", "-C", ROOT, "--ignore-failed-read", "--null", "-T", "-", "-c"],
            input=files,
            check=True,
            capture_output=True,
        ).stdout
