"""Prompts: TOML files that show a language model some documents with their queries, then a document without one."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inranker.errors import InputError
from inranker.registry import nearest

FOLDER = Path(__file__).parent / "prompts"

_KEYS = ("description", "preamble", "example", "examples", "stop")
_LANGUAGES = {
    "ar": "Arabic", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek", "en": "English", "es": "Spanish",
    "fi": "Finnish", "fr": "French", "hi": "Hindi", "hu": "Hungarian", "id": "Indonesian", "it": "Italian",
    "ja": "Japanese", "ko": "Korean", "nl": "Dutch", "no": "Norwegian", "pl": "Polish", "pt": "Portuguese",
    "ro": "Romanian", "ru": "Russian", "sv": "Swedish", "tr": "Turkish", "uk": "Ukrainian", "vi": "Vietnamese",
    "zh": "Chinese",
}  # fmt: skip


@dataclass(frozen=True)
class Prompt:
    """A few-shot prompt, cut where the document goes: `head`, the document, `tail`, then the model writes the query.

    `head` is the same for every document, so a model's key-values for it are computed once. It ends in no white space;
    the document follows after one blank. `stop` are the strings that end a query.
    """

    name: str
    head: str
    tail: str
    stop: tuple[str, ...] = ("\n",)

    def text(self, document: str) -> str:
        """The whole prompt for a document."""
        return f"{self.head} {document}{self.tail}"


def prompt_names() -> list[str]:
    """Names of the prompts that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_prompt(name: str, language: str = "en") -> Prompt:
    """Read a prompt of the package by name, or one's own by the path of its TOML file.

    The file has `example`, a template with `{document}` and `{query}` (and `{number}`, `{in_language}`, and any other
    key of the examples), a list `examples` that fills it, and optionally `preamble`, `stop` and `description`. The last
    example is the document at hand, up to `{query}`. `{in_language}` becomes e.g. " in German" there when `language` is
    `de`, and nothing in the examples, whose queries are as written.

    Raises:
        InputError: there is no such prompt, or its file is not as described.
    """
    path = FOLDER / f"{name}.toml"
    if name.endswith(".toml"):
        path = Path(name)
    elif not path.is_file():
        raise InputError(
            f"unknown prompt {name!r}; {nearest(name, prompt_names())}; your own: a path that ends in .toml"
        )
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such prompt file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not TOML: {error}") from None
    return _build(path, values, language)


def _build(path: Path, values: dict[str, Any], language: str) -> Prompt:
    for key in values:
        if key not in _KEYS:
            raise InputError(f"{path}: unknown key {key!r}; {nearest(key, _KEYS)}")
    template, preamble, examples = values.get("example"), values.get("preamble", ""), values.get("examples", [])
    if not isinstance(template, str) or "{query}" not in template.partition("{document}")[2]:
        raise InputError(f"{path}: 'example' must be a text with {{document}} and, after it, {{query}}")
    if not isinstance(preamble, str):
        raise InputError(f"{path}: 'preamble' must be a text")
    if not isinstance(examples, list) or not all(isinstance(example, dict) for example in examples):
        raise InputError(f"{path}: 'examples' must be tables, each under [[examples]]")
    stop = values.get("stop", ["\n"])
    if not isinstance(stop, list) or not stop or not all(isinstance(s, str) and s for s in stop):
        raise InputError(f"{path}: 'stop' must be a list of texts")
    in_language = "" if language == "en" else f" in {_LANGUAGES.get(language, language)}"
    last = {"number": len(examples) + 1, "in_language": in_language}
    parts = [_fill(path, preamble, last)]
    for number, example in enumerate(examples, 1):
        parts.append(_fill(path, template, {"number": number, "in_language": "", **example}))
    before, _, after = template.partition("{document}")
    parts.append(_fill(path, before, last))
    head = "\n\n".join(part.strip() for part in parts if part.strip())
    if not head:
        raise InputError(f"{path}: there must be some text before {{document}}")
    tail = _fill(path, after.partition("{query}")[0], last).rstrip()
    return Prompt(path.stem, head, tail, tuple(stop))


def _fill(path: Path, template: str, values: dict[str, Any]) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise InputError(f"{path}: example {values['number']} lacks {match[1]!r}, which a template names")
        return str(values[match[1]])

    return re.sub(r"\{([a-z_]+)\}", value, template)
