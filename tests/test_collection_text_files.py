"""Text and Markdown files become passages that know their headings."""

from __future__ import annotations

from pathlib import Path

import pytest

from inranker.collection import read_collection
from inranker.collection.text_files import markdown_sections, passages
from inranker.errors import InputError
from inranker.recipe import CollectionSettings
from inranker.types import Document

GUIDE = """\
# Sailing guide

Before you start.

## Boats ##

Wooden boats.

### Care

    # not a heading inside code
```sh
# nor this
```

Winds
-----

Strong winds.
"""


def read(folder: Path, **settings: object) -> list[Document]:
    return list(read_collection(CollectionSettings.model_validate({"source": str(folder), **settings})).documents)


def test_headings_become_titles(tmp_path: Path) -> None:
    (tmp_path / "guide.md").write_text(GUIDE)
    found = read(tmp_path)
    assert [(d.id, d.title) for d in found] == [
        ("guide.md#1", "Sailing guide"),
        ("guide.md#2", "Sailing guide > Boats"),
        ("guide.md#3", "Sailing guide > Boats > Care"),
        ("guide.md#4", "Sailing guide > Winds"),
    ]
    assert found[0].text == "Before you start."
    assert "# not a heading" in found[2].text
    assert "# nor this" in found[2].text
    assert found[3].text == "Strong winds."


def test_files_without_a_top_heading_go_by_their_name(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "notes.txt").write_text("# no Markdown here\nplain text")
    (tmp_path / "two.md").write_text("# One\nfirst\n# Two\nsecond\n")
    (tmp_path / "empty.md").write_text(" \n")
    (tmp_path / ".hidden.md").write_text("hidden")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    collection = read_collection(CollectionSettings.model_validate({"source": str(tmp_path)}))
    assert list(collection.documents) == [
        Document("sub/notes.txt#1", "# no Markdown here\nplain text", "notes"),
        Document("two.md#1", "first", "two > One"),
        Document("two.md#2", "second", "two > Two"),
    ]
    assert collection.skipped == 1


def test_passages_overlap_and_cover_every_word() -> None:
    words = [f"w{i}" for i in range(95)]
    found = list(passages(" ".join(words), 40, 10))
    assert [passage.split() for passage in found] == [words[0:40], words[30:70], words[60:95]]
    assert list(passages("a b c", 40, 10)) == ["a b c"]
    assert list(passages(" a\n\n b ", 1, 0)) == ["a", "b"]
    assert list(passages("  ", 40, 10)) == []
    # A window that ends with the text is the last one: nothing is repeated alone.
    assert len(list(passages(" ".join(words[:70]), 40, 10))) == 2


def test_passages_keep_their_lines_and_never_cross_headings(tmp_path: Path) -> None:
    (tmp_path / "long.md").write_text("# Top\n" + "one two\n" * 30 + "## Next\nthree\n")
    found = read(tmp_path, passage_words=40, passage_overlap=0)
    assert [len(d.text.split()) for d in found] == [40, 20, 1]
    assert found[0].text.startswith("one two\none two")
    assert found[2] == Document("long.md#3", "three", "Top > Next")


def test_front_matter_and_rules_are_no_headings() -> None:
    lines = "---\nlayout: page\n---\ntext\n\n---\nmore\n".splitlines(keepends=True)
    assert [section.headings for section in markdown_sections(lines)] == [()]


def test_wrong_encoding_and_wrong_settings_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("fine\nKüste\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"a.txt:2: byte 2 of the line \(0xfc\) is not UTF-8"):
        read(tmp_path)
    with pytest.raises(InputError, match="passage_overlap 40 must be smaller than passage_words 40"):
        read(tmp_path, passage_words=40, passage_overlap=40)
