"""Stemmers and stop words by language, and whether a corpus looks like the language it is said to be in."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType

from inranker.errors import InputError, require
from inranker.types import Document

# ISO 639-1 code -> Snowball's name. English takes Porter's first stemmer, as Lucene's BM25 baselines do.
SNOWBALL = {
    "ar": "arabic",
    "ca": "catalan",
    "cs": "czech",
    "da": "danish",
    "de": "german",
    "el": "greek",
    "en": "porter",
    "es": "spanish",
    "et": "estonian",
    "eu": "basque",
    "fa": "persian",
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
    "pl": "polish",
    "pt": "portuguese",
    "ro": "romanian",
    "ru": "russian",
    "sr": "serbian",
    "sv": "swedish",
    "ta": "tamil",
    "tr": "turkish",
    "yi": "yiddish",
}
WORD = re.compile(r"\w\w+")
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
_SCRIPTS = {  # as Unicode's character names begin; all others are written in Latin letters
    "ar": {"ARABIC"},
    "el": {"GREEK"},
    "fa": {"ARABIC"},
    "hi": {"DEVANAGARI"},
    "hy": {"ARMENIAN"},
    "ne": {"DEVANAGARI"},
    "ru": {"CYRILLIC"},
    "sr": {"CYRILLIC", "LATIN"},
    "ta": {"TAMIL"},
    "yi": {"HEBREW"},
}
_SAMPLE = 500  # documents looked at
_ENOUGH_WORDS = 200  # below this, shares of stop words say nothing


def stemmer(language: str) -> Callable[[str], str]:
    """The language's Snowball stemmer.

    Raises:
        InputError: Snowball, or the installed version of it, has none.
    """
    snowball = require("Stemmer", "distill")
    known = [code for code, name in SNOWBALL.items() if name in snowball.algorithms()]
    if language not in known:
        raise InputError(f"no stemmer for language {language!r}; known: {', '.join(known)}")
    return snowball.Stemmer(SNOWBALL[language]).stemWord


def require_bm25s(module: str = "bm25s") -> ModuleType:
    """bm25s, or a module of it, without JAX.

    Where JAX is installed bm25s runs a top-k of it when it is imported, and with CUDA that reserves most of the GPU's
    memory, which teacher and student need. This package never calls that top-k.

    Raises:
        MissingExtra: bm25s is not installed.
    """
    if "jax" in sys.modules:
        return require(module, "distill")
    sys.modules["jax"] = None  # type: ignore[assignment]  # `import jax` fails, as where it is not installed.
    try:
        return require(module, "distill")
    finally:
        del sys.modules["jax"]


@cache
def stop_words(language: str) -> frozenset[str]:
    """The language's stop words; none where there is no list."""
    name = _STOP_WORDS.get(language)
    lists = require_bm25s("bm25s.stopwords")
    return frozenset(getattr(lists, f"STOPWORDS_{name}")) if name else frozenset()


def mismatch(documents: Sequence[Document], language: str) -> str | None:
    """What a corpus looks like ("German", "Cyrillic script"), where that is clearly not `language`; else None.

    Judged by the script of most letters, and by the share of words that are some language's stop words, over documents
    spread evenly through the corpus. Only languages with a list of stop words are told apart.
    """
    step = max(1, len(documents) // _SAMPLE)
    text = " ".join(documents[i].content for i in range(0, len(documents), step)).lower()
    words = WORD.findall(text)
    if len(words) < _ENOUGH_WORDS:
        return None
    script = _script(text)
    if script not in _SCRIPTS.get(language, {"LATIN"}):
        return f"{script.capitalize()} script"
    if language not in _STOP_WORDS:
        return None
    shares = {code: sum(word in stop_words(code) for word in words) / len(words) for code in _STOP_WORDS}
    best = max(shares, key=lambda code: shares[code])
    # Languages share short words, and Lucene's English list is a tenth as long as the others: ask for a clear lead.
    if shares[best] > 0.15 and shares[best] > 1.6 * shares[language]:
        return "English" if best == "en" else SNOWBALL[best].capitalize()
    return None


def _script(text: str) -> str:
    letters: Counter[str] = Counter()
    for character, count in Counter(text).items():
        if character.isalpha():
            letters[unicodedata.name(character, "?").split()[0]] += count
    return letters.most_common(1)[0][0] if letters else "LATIN"
