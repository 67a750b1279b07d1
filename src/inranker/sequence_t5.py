"""Token sequences of monoT5: `Query: q Document: d Relevant:` and the end-of-sequence token.

Two modes. `strict` cuts the document and keeps everything else. `legacy` is what the published inference feeds the
released weights: the whole string, cut at the end, so that a long document loses `Relevant:`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tokenizers import Tokenizer

from inranker.errors import ModelError
from inranker.sequence import ModelSettings, TokenSequence


class Wording(NamedTuple):
    """The words of a family of checkpoints: a pair's prompt, and the vocabulary entries that say no and yes."""

    query: str
    document: str
    closing: str
    false: str
    true: str


_ENGLISH = ("Query:", "Document:", "Relevant:")
TRUE_FALSE = Wording(*_ENGLISH, "▁false", "▁true")
YES_NO = Wording(*_ENGLISH, "▁no", "▁yes")
# monoPTT5 has a Portuguese prompt; the older PTT5 rankers answer in Portuguese to the English one.
PORTUGUESE = Wording("Pergunta:", "Documento:", "Relevante:", "▁Não", "▁Sim")
PORTUGUESE_ENGLISH_PROMPT = Wording(*_ENGLISH, "▁não", "▁sim")


def find_wording(tokenizer: Tokenizer, model_type: str, settings: ModelSettings | None = None) -> Wording:
    """The wording of a checkpoint: by the two token ids that its settings name, else the first its vocabulary holds.

    mT5 rankers answer yes and no, English T5 rankers true and false, though either vocabulary holds all four words.

    Raises:
        ModelError: the vocabulary has none of the pairs of words.
    """
    order = [TRUE_FALSE, PORTUGUESE, PORTUGUESE_ENGLISH_PROMPT, YES_NO]
    if model_type == "mt5":
        order = [YES_NO, TRUE_FALSE, PORTUGUESE, PORTUGUESE_ENGLISH_PROMPT]
    if settings is not None and settings.true_token is not None and settings.false_token is not None:
        false, true = tokenizer.id_to_token(settings.false_token), tokenizer.id_to_token(settings.true_token)
        if false is None or true is None:
            raise ModelError(
                f"config.json: inranker.false_token {settings.false_token} or true_token {settings.true_token} "
                "is not in the tokenizer's vocabulary"
            )
        return next((w for w in order if (w.false, w.true) == (false, true)), Wording(*_ENGLISH, false, true))
    for wording in order:
        if tokenizer.token_to_id(wording.false) is not None and tokenizer.token_to_id(wording.true) is not None:
            return wording
    tried = ", ".join(f"{w.false}/{w.true}" for w in order)
    raise ModelError(
        f"the tokenizer has no pair of answer words ({tried}), each a single token: is this a monoT5 checkpoint? "
        "If it answers with other words, put their ids into config.json as inranker.false_token and inranker.true_token"
    )


class T5Strict:
    """The prompt with only the document cut; a query beyond half of the maximum is cut to it and counted.

    On a pair that fits, the sequence is the legacy one, token for token.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int, wording: Wording = TRUE_FALSE) -> None:
        self.tokenizer = tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.max_length = max_length
        self.wording = wording
        self.truncated_queries = 0
        closing = tokenizer.encode(wording.closing)
        if not closing.ids or not closing.special_tokens_mask[-1]:
            raise ModelError("the tokenizer adds no end-of-sequence token: it is no T5 tokenizer")
        self._tail = closing.ids
        self._fence = len(closing.ids) - sum(closing.special_tokens_mask)
        self._head, self._middle = self.encode([wording.query, wording.document])
        self.specials = len(self._head) + len(self._middle) + len(self._tail)
        if self.specials > max_length // 2:
            raise ModelError(f"max_length {max_length} leaves no room beside the prompt's {self.specials} tokens")

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, without special tokens and uncut, as they are inside a prompt.

        T5's tokenizers split at spaces, so a text between two words has the tokens that it has in any prompt, whatever
        the normalizer makes of spaces, zero-width or combining characters at its ends; on its own it may not.
        """
        word, n = self.wording.closing, self._fence
        fenced = [f"{word} {text} {word}" for text in texts]
        return [e.ids[n:-n] for e in self.tokenizer.encode_batch_fast(fenced, add_special_tokens=False)]

    def cut_query(self, ids: list[int]) -> list[int]:
        """The query's tokens, cut (and counted) only beyond half of the maximum length."""
        limit = min(self.max_length // 2, self.max_length - self.specials)
        if len(ids) <= limit:
            return ids
        self.truncated_queries += 1
        return ids[:limit]

    def build(self, query_ids: list[int], document_ids: list[int]) -> TokenSequence:
        """The sequence of a pair from the two texts' token ids; `query_ids` have been through `cut_query`."""
        document = document_ids[: max(self.max_length - self.specials - len(query_ids), 0)]
        return TokenSequence([*self._head, *query_ids, *self._middle, *document, *self._tail], None)

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> list[TokenSequence]:
        """Sequences of pairs of texts; every distinct text is tokenized once."""
        queries = list(dict.fromkeys(q for q, _ in pairs))
        documents = list(dict.fromkeys(d for _, d in pairs))
        query_ids = dict(zip(queries, map(self.cut_query, self.encode(queries)), strict=True))
        document_ids = dict(zip(documents, self.encode(documents), strict=True))
        return [self.build(query_ids[q], document_ids[d]) for q, d in pairs]


class T5Legacy(T5Strict):
    """The published inference: the whole prompt, cut to the maximum length, then the end-of-sequence token."""

    def cut_query(self, ids: list[int]) -> list[int]:
        """The query's tokens, uncut."""
        return ids

    def build(self, query_ids: list[int], document_ids: list[int]) -> TokenSequence:
        """The sequence of a pair from the two texts' token ids."""
        ids = [*self._head, *query_ids, *self._middle, *document_ids, *self._tail]
        return TokenSequence(ids if len(ids) <= self.max_length else [*ids[: self.max_length - 1], ids[-1]], None)


def t5_sequences(tokenizer: Tokenizer, settings: ModelSettings, model_type: str = "t5") -> T5Strict:
    """The builder that a T5's settings ask for.

    Raises:
        ModelError: an unknown mode, or a tokenizer that is no T5 ranker's.
    """
    modes: dict[str, type[T5Strict]] = {"strict": T5Strict, "legacy": T5Legacy}
    if settings.mode not in modes:
        raise ModelError(f"unknown token mode {settings.mode!r}; known: {', '.join(modes)}")
    return modes[settings.mode](tokenizer, settings.max_length, find_wording(tokenizer, model_type, settings))
