"""What a word is: the one definition that indexing, searching and the plain count share."""

import re
import unicodedata
from collections import Counter

MAX_WORD_LENGTH = 64  # longer ones are encoded data, not words; they would only fill the index

_WORD = re.compile(r"\w+")  # Unicode letters, digits and underscores


def words(text: str) -> list[str]:
    """The words of a text in order: runs of Unicode word characters, casefolded, composed (NFC), at most 64 long.

    Longer runs are left out. A word is its own only word: words(w) == [w] for each w in words(text).
    """
    folded = unicodedata.normalize("NFC", text.casefold())
    return [word for word in _WORD.findall(folded) if len(word) <= MAX_WORD_LENGTH]


def count_words(text: str) -> Counter[str]:
    """How often each word occurs in a text."""
    return Counter(words(text))
