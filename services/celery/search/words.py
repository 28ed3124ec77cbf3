"""The definition of a word, shared by indexing, searching and the simple count."""

import re
import unicodedata
from collections import Counter

MAX_WORD_LENGTH = 64  # longer ones are encoded data, and would only fill the index

_WORD = re.compile(r"\w+")  # Unicode letters, digits and underscores


def words(text: str) -> list[str]:
    """The words of a text in order: runs of Unicode word characters, casefolded, composed (NFC), at most 64 long.

    Longer runs are left out. words(w) == [w] for each w in words(text).
    """
    folded = unicodedata.normalize("NFC", text.casefold())
    return [word for word in _WORD.findall(folded) if len(word) <= MAX_WORD_LENGTH]


def count_words(text: str) -> Counter[str]:
    """How often each word occurs in a text."""
    return Counter(words(text))
