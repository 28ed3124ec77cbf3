"""The tokenizer: what a word is."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.words import MAX_WORD_LENGTH, count_words, words

texts = st.text(st.characters(codec="utf-8"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def Add(x, y):", ["def", "add", "x", "y"]),
        ("__init__ snake_case 3.14", ["__init__", "snake_case", "3", "14"]),
        ("Straße STRASSE", ["strasse", "strasse"]),
        ("cafe\u0301 caf\u00e9", ["caf\u00e9", "caf\u00e9"]),  # decomposed and composed
        ("日本語 текст", ["日本語", "текст"]),
        ("a" * MAX_WORD_LENGTH + " " + "b" * (MAX_WORD_LENGTH + 1), ["a" * MAX_WORD_LENGTH]),
        ("!? \n\x00", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@given(texts)
def test_a_word_finds_itself(text: str) -> None:
    """A search passes its term through the same function, so each indexed word must be returned unchanged."""
    for word in words(text):
        assert words(word) == [word]
        assert re.fullmatch(r"\w{1,64}", word)


@given(texts, texts)
def test_counts_add_up_over_lines(first: str, second: str) -> None:
    assert count_words(f"{first}\n{second}") == count_words(first) + count_words(second)
