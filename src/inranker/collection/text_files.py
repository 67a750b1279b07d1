"""A folder of `.txt` and `.md` files, cut into passages that know their headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from inranker.collection.collection import Collection
from inranker.collection.documents import DocumentBuilder, Progress, silent
from inranker.collection.lines import read_lines
from inranker.errors import InputError

if TYPE_CHECKING:
    from inranker.recipe import CollectionSettings

_SUFFIXES = {".txt", ".md", ".markdown"}
_FENCE = re.compile(r"\s{0,3}(```+|~~~+)")
_HEADING = re.compile(r"\s{0,3}(#{1,6})\s+(.*?)\s*#*\s*$")
_UNDERLINE = re.compile(r"\s{0,3}(=+|-+)\s*$")
_WORD = re.compile(r"\S+")


class Section(NamedTuple):
    """Text under one heading; `headings` lead from the file's top to it."""

    headings: tuple[str, ...]
    text: str


def read_text_files(folder: Path, settings: CollectionSettings, progress: Progress = silent) -> Collection:
    """Read every text and Markdown file below `folder`, hidden ones left out.

    A passage has at most `passage_words` words, shares `passage_overlap` with the one before, and never crosses a
    Markdown heading. Its id is the file's path and the passage's number in it; its title is the file's title and the
    headings above.

    Raises:
        InputError: no such file, wrong encoding, or an overlap as large as the passage.
    """
    if settings.passage_overlap >= settings.passage_words:
        raise InputError(
            f"passage_overlap {settings.passage_overlap} must be smaller than passage_words {settings.passage_words}"
        )
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in _SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not files:
        raise InputError(f"{folder}: neither corpus.jsonl (BEIR) nor any .txt or .md file")
    builder = DocumentBuilder(folder, progress)
    empty = 0
    for path in files:
        name = path.relative_to(folder).as_posix()
        lines = [line for _, line in read_lines(path)]
        sections = markdown_sections(lines) if path.suffix.lower() != ".txt" else [Section((), "".join(lines))]
        title, sections = _file_title(path, sections)
        number = 0
        for section in sections:
            for passage in passages(section.text, settings.passage_words, settings.passage_overlap):
                number += 1
                builder.add(number, f"{name}#{number}", " > ".join((title, *section.headings)), passage)
        empty += number == 0
    notes = (f"{folder}: {empty} files without text were skipped",) if empty else ()
    return Collection(folder.resolve().name, builder.finish(), skipped=empty, notes=notes)


def markdown_sections(lines: list[str]) -> list[Section]:
    """Cut Markdown at its headings (`#` and underlined ones, none inside a fenced block)."""
    sections: list[Section] = []
    path: list[tuple[int, str]] = []
    body: list[str] = []
    fence = ""

    def close() -> None:
        if "".join(body).strip():
            sections.append(Section(tuple(text for _, text in path), "".join(body)))
        body.clear()

    def enter(level: int, text: str) -> None:
        close()
        while path and path[-1][0] >= level:
            path.pop()
        path.append((level, text))

    for line in lines:
        if mark := _FENCE.match(line):
            fence = "" if fence and mark[1].startswith(fence) else fence or mark[1]
            body.append(line)
        elif not fence and (heading := _HEADING.match(line)):
            enter(len(heading[1]), heading[2])
        elif not fence and body and (rule := _UNDERLINE.match(line)) and _is_one_line_paragraph(body):
            text = body.pop().strip()
            enter(1 if rule[1].startswith("=") else 2, text)
        else:
            body.append(line)
    close()
    return sections


def passages(text: str, words: int, overlap: int) -> Iterator[str]:
    """Windows of at most `words` words, each sharing `overlap` with the one before; white space inside is kept."""
    spans = [match.span() for match in _WORD.finditer(text)]
    for start in range(0, max(1, len(spans) - overlap), words - overlap):
        window = spans[start : start + words]
        if window:
            yield text[window[0][0] : window[-1][1]]


def _is_one_line_paragraph(body: list[str]) -> bool:
    text = body[-1].strip()
    alone = len(body) == 1 or not body[-2].strip()
    return bool(text) and alone and not text.startswith(("-", "*", "+", ">", "|", "#"))


def _file_title(path: Path, sections: list[Section]) -> tuple[str, list[Section]]:
    """The heading above everything, else the file's name; headings then start below it."""
    top = {section.headings[:1] for section in sections}
    if len(top) == 1 and (only := top.pop()):
        return only[0], [Section(section.headings[1:], section.text) for section in sections]
    return path.stem, sections
