"""The questions on Python's standard library that ship with the package: queries and judgements for `pythondocs`.

`pythondocs_questions.jsonl` has one question a line: `id`, `text`, `answers` (qualified names of the documents that
answer it) and `split`. They are in a user's words, not the documentation's. The answers are those that the writer had
in mind, and what else was judged to answer the question among the first ten of BM25 and of an embedding model.

The split goes by the top-level module of the answers (built-ins and the chapters on the language count as one module
each): no module has answers in both parts, so what is learnt from the training part is tested on other modules.
"""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import dataclass
from importlib import resources
from typing import Literal

from inranker.types import Qrels, Query

_FILE = "pythondocs_questions.jsonl"


@dataclass(frozen=True, slots=True)
class Questions:
    """Queries with their judgements (every answer has grade 1).

    `lacking` counts the answers, `dropped` the questions left without one, that the documents at hand do not have.
    """

    queries: list[Query]
    qrels: Qrels
    lacking: int = 0
    dropped: int = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out, in words."""
        if not self.lacking:
            return ()
        questions = f", and with them {self.dropped} of the questions" if self.dropped else ""
        return (f"{self.lacking} of the answers are not in this Python's documentation{questions}",)


def read_questions(split: Literal["train", "test"], known: Container[str]) -> Questions:
    """The questions of `split`, with those of their answers that are in `known`, the ids of the documents at hand.

    Python's versions differ in what they document, so an unknown answer is left out and counted.
    """
    queries: list[Query] = []
    qrels: Qrels = {}
    lacking = dropped = 0
    for line in resources.files(__package__).joinpath(_FILE).read_text(encoding="utf-8").splitlines():
        question = json.loads(line)
        if question["split"] != split:
            continue
        answers = {name: 1 for name in question["answers"] if name in known}
        lacking += len(question["answers"]) - len(answers)
        if answers:
            queries.append(Query(question["id"], question["text"]))
            qrels[question["id"]] = answers
        else:
            dropped += 1
    return Questions(queries, qrels, lacking, dropped)
