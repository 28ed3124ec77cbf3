"""docs/your-own-tasks.md and docs/your-own.md, followed in a copy of the project: their files, edits and commands."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

import pytest

from readme.clone import PROJECT, ROOT, Clone
from readme.page import follow
from readme.receiver import RECEIVES
from stack.poll import poll_until

CELERY_IMAGE = f"{PROJECT}/celery:local"
RECEIVER = f"{PROJECT}-receiver"


@pytest.fixture(scope="module")
def clone_of_its_own(clone: Clone) -> Iterator[Clone]:
    """A clone with its own image, since the pages change the code."""
    clone.environment["CELERY_IMAGE"] = CELERY_IMAGE
    yield clone
    clone.run(f"docker rm --force {RECEIVER}; FORCE=1 make clean; docker image rm {CELERY_IMAGE}")


def test_every_step_to_your_own_tasks_works_as_the_page_says(clone_of_its_own: Clone) -> None:
    follow((ROOT / "docs/your-own-tasks.md").read_text(), clone_of_its_own)


@pytest.fixture
def documents(clone_of_its_own: Clone) -> Path:
    """A folder with a document, and a file that is none."""
    folder = clone_of_its_own.folder.parent / "documents"
    folder.mkdir()
    (folder / "zoo.txt").write_text("The zebra sleeps.\n")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    return folder


def test_what_the_page_replaces_is_used(clone_of_its_own: Clone, documents: Path) -> None:
    """All edits of the page first, since one `make up` applies them."""
    clone = clone_of_its_own
    page = (ROOT / "docs/your-own.md").read_text().replace("/srv/documents", str(documents))
    blocks = re.findall(r"^```\w+\n.*?^```\n", page, re.DOTALL | re.MULTILINE)
    blocks.sort(key=lambda block: not block.startswith(("```diff", "```python")))

    def python(program: str) -> str:
        return clone.output(f"docker compose run --rm --no-deps -T client python -c {quote(program)} 2>/dev/null")

    def applied() -> None:
        alias = f"--network {PROJECT}_metrics --network-alias my-receiver"
        clone.output(f"docker run --detach --name {RECEIVER} {alias} {CELERY_IMAGE} python -u -c {quote(RECEIVES)}")
        python("from tasks.search import index_corpus; index_corpus.delay()")  # beat does it at the next minute

        def only_mine_is_indexed() -> bool:
            stats = json.loads(
                python("import json; from tasks.search import stats; print(json.dumps(stats.delay().get()))")
            )
            return bool(stats["documents"] == 1 and "picture.png" in str(stats["run"]))

        poll_until(only_mine_is_indexed, "the folder's document to be indexed, and no other", 120, interval=1)
        logs = "docker compose logs --since 30s worker-low"
        poll_until(lambda: "noted: good morning" in clone.output(logs), "the greeting, every 10 s", 60, interval=1)

    def shows_data() -> None:
        panel = json.loads((clone.folder / "grafana/dashboards/notes.json").read_text())["panels"][0]
        promtool = "promtool query instant --http.config.file=/etc/prometheus/promtool_login.yml http://localhost:9090"
        output = f"docker compose exec -T prometheus {promtool} {quote(panel['targets'][0]['expr'])}"
        poll_until(lambda: "success" in clone.output(output), "data in the panel", 60, interval=1)

    def received() -> None:
        poll_until(lambda: "received Test" in clone.output(f"docker logs {RECEIVER}"), "the alert", 60, interval=1)

    follow("".join(blocks), clone, {"make up": applied, "make test-unit": shows_data, "alert add": received})
