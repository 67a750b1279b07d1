"""Token sequences for causal teachers: a template around a query and a document that always ends in the same tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from inranker.errors import InputError

DEFAULT_TEMPLATE = "Query: {query}\nDocument: {document}\nRelevant:"
_FIELDS = re.compile(r"\{(query|document)\}")


class CausalSequences:
    """Builds `template` with the document cut to fit; the query is cut only beyond half of the maximum length.

    The pieces of the template are tokenized once and each distinct text once. White space before a field is tokenized
    with the field's text, as it would be in the whole string.
    """

    def __init__(self, tokenizer: Any, template: str = DEFAULT_TEMPLATE, max_length: int = 512) -> None:
        fields = _FIELDS.findall(template)
        if sorted(fields) != ["document", "query"]:
            raise InputError("a teacher's template needs {query} and {document}, once each")
        self.template = template
        self.max_length = max_length
        self._tokenizer = tokenizer
        self._order = fields
        literals = _FIELDS.split(template)[::2]
        self._lead = [re.search(r"\s*$", text).group() for text in literals[:2]]  # type: ignore[union-attr]
        bodies = [literals[0].rstrip(), literals[1].rstrip(), literals[2]]
        self._literals = [self._encode([text])[0] if text else [] for text in bodies]
        self._fixed = sum(map(len, self._literals))
        self.truncated_queries = 0

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]

    def encode_fields(self, kind: str, texts: Sequence[str]) -> dict[str, list[int]]:
        """Token ids of distinct texts as they stand in the template's field `kind`."""
        lead = self._lead[self._order.index(kind)]
        distinct = list(dict.fromkeys(texts))
        # No document needs more characters than this: long ones are cut before the tokenizer sees them.
        limit = self.max_length * 24
        return (
            dict(zip(distinct, self._encode([lead + text[:limit] for text in distinct]), strict=True))
            if distinct
            else {}
        )

    def build(self, query_ids: list[int], document_ids: list[int]) -> list[int]:
        """The sequence of one pair."""
        limit = self.max_length // 2
        if len(query_ids) > limit:
            self.truncated_queries += 1
            query_ids = query_ids[:limit]
        document_ids = document_ids[: max(self.max_length - self._fixed - len(query_ids), 0)]
        first, second = (query_ids, document_ids) if self._order[0] == "query" else (document_ids, query_ids)
        before, between, after = self._literals
        return [*before, *first, *between, *second, *after]

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> list[list[int]]:
        """Sequences of pairs of texts."""
        queries = self.encode_fields("query", [q for q, _ in pairs])
        documents = self.encode_fields("document", [d for _, d in pairs])
        return [self.build(queries[q], documents[d]) for q, d in pairs]


def single_token(tokenizer: Any, word: str) -> int:
    """The id of a word that the tokenizer keeps whole.

    Raises:
        InputError: the tokenizer splits it, so its logit is no single number.
    """
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise InputError(f"the tokenizer splits {word!r} into {len(ids)} tokens; choose another answer word")
    return ids[0]
