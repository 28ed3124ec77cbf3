"""The example of docs/delivery.md, by its effect; what SECURITY.md and docs/faq.md name, and all links. Other pages are
followed on a stack, in tests/readme."""

import re
import runpy
from pathlib import Path

import pytest
from redis import Redis

from celery_durable import Durable

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/delivery.md").read_text()
DOCS = [str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").rglob("*.md"))]


def test_the_task_of_the_page_on_delivery_applies_its_effect_once(
    client: Redis, monkeypatch: pytest.MonkeyPatch, eager: None, tmp_path: Path
) -> None:
    monkeypatch.setattr(Durable, "store", client)
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "payments.py").write_text(block)
    credit = runpy.run_path(str(tmp_path / "payments.py"))["credit"]
    credit.delay("payment-1", "alice", 250).get()
    credit.delay("payment-1", "alice", 250).get()
    assert client.get("balance:alice") == "250"
    credit.delay("payment-2", "alice", 50).get()
    assert client.get("balance:alice") == "300"
    assert all(key.startswith("balance:") for key in client.scan_iter()), "the page names a right to these keys only"


def test_each_test_that_the_page_on_security_names_exists() -> None:
    tests = "".join(file.read_text() for folder in ("tests", "packages") for file in (ROOT / folder).rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", (ROOT / "SECURITY.md").read_text())
    assert named
    assert [name for name in named if f"def {name}(" not in tests] == []


def answers() -> dict[str, str]:
    """The text of each answer of docs/faq.md, without its commands and their output."""
    page = re.sub(r"^```\w+\n.*?^```\n", "", (ROOT / "docs/faq.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    _, *sections = re.split(r"^### ", re.sub(r"^## .*\n", "", page, flags=re.MULTILINE), flags=re.MULTILINE)
    return {question: answer.strip() for question, _, answer in (each.partition("\n") for each in sections)}


def test_the_questions_have_short_answers() -> None:
    assert len(answers()) >= 30
    for question, answer in answers().items():
        lines = answer.splitlines()
        assert 1 <= len(lines) <= 5, question
        assert all(len(line) <= 120 for line in lines), question


def test_each_lesson_that_an_answer_names_is_on_the_page_that_it_links() -> None:
    links = [link for answer in answers().values() for link in re.findall(r"\[([\w-]+)\]\((lessons/.+?)\)", answer)]
    assert links
    for lesson, page in links:
        assert f"make tour LESSON={lesson}`" in (ROOT / "docs" / page).read_text(), f"{lesson}: not in {page}"


def anchors(page: Path) -> set[str]:
    """What a link to a heading of a page may end in."""
    headings = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md", *DOCS])
def test_each_link_to_a_file_leads_to_one(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        if "://" not in target:
            name, _, anchor = target.partition("#")
            file = (ROOT / page).parent / name if name else ROOT / page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), target
