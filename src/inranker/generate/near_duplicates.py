"""Near-duplicate texts by the Jaccard similarity of their word sets: exact, with prefix filtering to stay fast."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from math import ceil

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Lower-case words of a text, punctuation left out."""
    return _WORD.findall(text.casefold())


class NearDuplicates:
    """Texts seen so far, and whether a new one is near any of them.

    Two sets with Jaccard similarity at least t share at least ceil(t |s|) words of either set s, so one of any
    |s| - ceil(t |s|) + 1 words of s is in the other (prefix filtering; Chaudhuri, Ganti, Kaushik 2006). All words of
    the texts seen are indexed, so those can be the rarest ones, and only texts that hold one of them are compared.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._sets: list[frozenset[str]] = []
        self._by_word: dict[str, list[int]] = defaultdict(list)
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Remember a text."""
        own = frozenset(words(text))
        for word in own:
            self._by_word[word].append(len(self._sets))
        self._sets.append(own)

    def near(self, text: str, threshold: float) -> bool:
        """Whether a text remembered has a word Jaccard of at least `threshold` (in (0, 1]) with this one.

        A text without words is near nothing.
        """
        own = frozenset(words(text))
        order = sorted(own, key=lambda word: (len(self._by_word.get(word, ())), word))
        prefix = order[: len(own) - ceil(threshold * len(own) - 1e-9) + 1]
        compared: set[int] = set()
        for word in prefix:
            for number in self._by_word.get(word, ()):
                if number in compared:
                    continue
                compared.add(number)
                other = self._sets[number]
                shared = len(own & other)
                if shared >= threshold * (len(own) + len(other) - shared) - 1e-9:
                    return True
        return False
