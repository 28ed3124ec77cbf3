"""docs/faq.md, followed in a copy of the project."""

from readme.clone import ROOT, Clone
from readme.page import follow


def test_every_answer_works_as_the_page_says(clone: Clone) -> None:
    """And a dead letter that was dropped is gone."""
    clone.output("make up")

    def dropped() -> None:
        assert "no dead letters" in clone.output("make dlq")

    follow((ROOT / "docs/faq.md").read_text(), clone, {"drop --task": dropped})
