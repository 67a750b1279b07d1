"""Stemmers and stop words by language, and whether a corpus looks like the language it is said to be in."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache

from inranker.errors import InputError, require
from inranker.registry import nearest
from inranker.types import Document

# ISO 639-1 code -> Snowball's name. English takes Porter's first stemmer, as Lucene's BM25 baselines do.
SNOWBALL = {
    "ar": "arabic",
    "ca": "catalan",
    "da": "danish",
    "de": "german",
    "el": "greek",
    "en": "porter",
    "es": "spanish",
    "et": "estonian",
    "eu": "basque",
    "fi": "finnish",
    "fr": "french",
    "ga": "irish",
    "hi": "hindi",
    "hu": "hungarian",
    "hy": "armenian",
    "id": "indonesian",
    "it": "italian",
    "lt": "lithuanian",
    "ne": "nepali",
    "nl": "dutch",
    "no": "norwegian",
    "pt": "portuguese",
    "ro": "romanian",
    "ru": "russian",
    "sr": "serbian",
    "sv": "swedish",
    "ta": "tamil",
    "tr": "turkish",
    "yi": "yiddish",
}
_STOP_WORDS = {  # bm25s's lists; English is Lucene's, 33 words
    "da": "DANISH",
    "de": "GERMAN",
    "en": "EN",
    "es": "SPANISH",
    "fr": "FRENCH",
    "it": "ITALIAN",
    "nl": "DUTCH",
    "no": "NORWEGIAN",
    "pt": "PORTUGUESE",
    "ru": "RUSSIAN",
    "sv": "SWEDISH",
    "tr": "TURKISH",
}
WORD = re.compile(r"\w\w+")
_SAMPLE = 500  # documents looked at
_ENOUGH_WORDS = 200  # below this, shares of stop words say nothing


def stemmer(language: str) -> Callable[[str], str]:
    """The language's Snowball stemmer.

    Raises:
        InputError: Snowball has none.
    """
    if language not in SNOWBALL:
        raise InputError(f"no stemmer for language {language!r}; {nearest(language, SNOWBALL)}")
    return require("Stemmer", "distill").Stemmer(SNOWBALL[language]).stemWord


@cache
def stop_words(language: str) -> frozenset[str]:
    """The language's stop words; none where there is no list."""
    name = _STOP_WORDS.get(language)
    lists = require("bm25s.stopwords", "distill")
    return frozenset(getattr(lists, f"STOPWORDS_{name}")) if name else frozenset()


def looks_like(documents: Sequence[Document], language: str) -> str | None:
    """The language that a corpus looks like, where that is clearly another than `language`; else None.

    Judged by the share of words that are some language's stop words, over documents spread evenly through the corpus. Only
    languages with a list can be recognised.
    """
    step = max(1, len(documents) // _SAMPLE)
    words = [word for i in range(0, len(documents), step) for word in WORD.findall(documents[i].content.lower())]
    if len(words) < _ENOUGH_WORDS or language not in _STOP_WORDS:
        return None
    shares = {code: sum(word in stop_words(code) for word in words) / len(words) for code in _STOP_WORDS}
    best = max(shares, key=lambda code: shares[code])
    # The English list is a tenth as long as the others, so a tie says nothing; related languages share many words.
    return best if shares[best] > 0.15 and shares[best] > 2 * shares[language] else None
