"""Prompts, and how a completion becomes a query."""

from __future__ import annotations

import pytest

from inranker.errors import InputError
from inranker.generate.backend import cut_at_stop
from inranker.generate.cleaning import clean
from inranker.generate.prompts import load_prompt, prompt_names


def test_the_prompts_that_come_along():
    assert {"inpars", "inpars-gbq", "keywords", "claim", "title", "narrative"} <= set(prompt_names())
    for name in prompt_names():
        prompt = load_prompt(name)
        assert prompt.text("D").count("Document:") == 4
        assert prompt.head.endswith("Example 4:\nDocument:")
        assert prompt.tail.startswith("\n") and prompt.tail.endswith(":")
        assert "{" not in prompt.head + prompt.tail


def test_layout():
    text = load_prompt("inpars-gbq").text("the document")
    assert text.startswith("Example 1:\nDocument: Sourdough")
    assert "\nBad Question: How long is it?\n\nExample 3:\n" in text
    assert text.endswith("\n\nExample 4:\nDocument: the document\nGood Question:")


def test_language():
    assert load_prompt("inpars", "de").tail == "\nRelevant Query in German:"
    assert load_prompt("inpars", "Low Saxon").tail == "\nRelevant Query in Low Saxon:"
    assert "in German" not in load_prompt("inpars", "de").head


def test_own_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'preamble = "Write it{in_language}."\nstop = ["?"]\n'
        'example = "Text: {document}\\nMood: {mood}\\nAsk: {query}\\n"\n'
        '[[examples]]\ndocument = "a {b} c"\nmood = "good"\nquery = "why"\n'
    )
    with pytest.raises(InputError, match="'mood'"):
        load_prompt(str(path))
    path.write_text(
        'preamble = "Ask."\nstop = ["?"]\nexample = "Text: {document}\\nAsk: {query}\\n"\n'
        '[[examples]]\ndocument = "a {b} c"\nquery = "why"\n'
    )
    prompt = load_prompt(str(path))
    assert prompt.name == "mine" and prompt.stop == ("?",)
    assert prompt.text("D") == "Ask.\n\nText: a {b} c\nAsk: why\n\nText: D\nAsk:"
    path.write_text('preamble = "{Ask}{in_language}: {}"\nexample = "Text: {document}\\n{query}"')
    assert load_prompt(str(path), "fr").text("D") == "{Ask} in French: {}\n\nText: D"
    path.write_text('example = "Passage: {document}\\nQuestion: {query}"')
    assert load_prompt(str(path)).text("D") == "Passage: D\nQuestion:"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("example = 3", "'example' must be a text with"),
        ('example = "{document}: {query}"', "some text before"),
        ('example = "x {document}"', "after it, {query}"),
        ('example = "x {query} {document}"', "after it, {query}"),
        ('exampel = "x"', "unknown key 'exampel'; did you mean 'example'"),
        ('example = "x {document} {query}"\nstop = []', "'stop' must be"),
        ("example = ", "not TOML"),
        ('example = "x {document} {query}"\n[[examples]]\nquery = "a"', "example 1 lacks 'document'"),
        ('example = "x {document} {query}"\nexamples = 3', "'examples' must be"),
        ('example = "x {document} {query}"\npreamble = 3', "'preamble' must be"),
    ],
)
def test_mistakes_in_a_file(tmp_path, text, message):
    path = tmp_path / "p.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_prompt(str(path))
    assert str(caught.value).startswith(str(path)) and message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "query"),
    [
        (" What is BM25?", "What is BM25?"),
        ("\n\n  How   so?\nBad Question: x", "How so?"),
        (' "What is it?" ', "What is it?"),
        ("“was ist das”", "was ist das"),
        ('say "hello" in rust', 'say "hello" in rust'),
        ('"hello" and "bye"', '"hello" and "bye"'),
        ("Relevant Query: good things", "good things"),
        ("1. Question 2: 'a b'", "a b"),
        ("- **list comprehension**", "list comprehension"),
        ("std::sort: complexity", "std::sort: complexity"),
        ("3.12 release notes", "3.12 release notes"),
        ('What does "x mean', 'What does "x mean'),
        ('"What does it', "What does it"),
        ("`__init__`", "__init__"),
        ("What is it? How so? What is it? How so?", "What is it? How so?"),
        ("How is it used? Why? How is it us", "How is it used? Why?"),
        ("Why is it? Why is it not?", "Why is it? Why is it not?"),
        ("...", ""),
        ("", ""),
    ],
)
def test_clean(raw, query):
    assert clean(raw) == query
    assert clean(query) == query


def test_cut_at_stop():
    assert cut_at_stop("a?b\nc", ["\n", "?"]) == "a"
    assert cut_at_stop("abc", ["\n"]) == "abc"
