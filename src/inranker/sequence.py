"""Token sequences, built in one place and used by training, scoring and export alike.

`strict` sequences keep what the model needs to work: the document is cut to fit, the query only beyond half of the
maximum length (and counted), the closing tokens never. The settings live in the model folder, in `config.json` under
the key `inranker`, so a model is always fed what it was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from inranker.errors import ModelError
from inranker.store import read_json, write_json


class TokenSequence(NamedTuple):
    """One pair as the model sees it; `token_type_ids` is None for models without them."""

    input_ids: list[int]
    token_type_ids: list[int] | None


@dataclass(frozen=True)
class ModelSettings:
    """What this package needs to know about a ranker beyond its Hugging Face configuration.

    Attributes:
        architecture: `encoder` (one-logit sequence classifier) or `t5` (monoT5).
        mode: `strict` or `legacy`: how a pair becomes tokens.
        max_length: tokens a pair, closing tokens included.
        calibration: (a, b) with probability = sigmoid(a * logit + b), fitted on held-out pairs after training;
            None where nobody fitted one: the probability is then the plain sigmoid.
        false_token, true_token: ids of the two words whose logits a T5 is scored by.
    """

    architecture: str = "encoder"
    mode: str = "strict"
    max_length: int = 512
    calibration: tuple[float, float] | None = None
    false_token: int | None = None
    true_token: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: str | Path) -> ModelSettings | None:
        """The settings kept in a model folder, or None for a folder that this package did not write."""
        values = read_json(Path(folder) / "config.json").get("inranker")
        if values is None:
            return None
        try:
            if values.get("calibration") is not None:
                scale, offset = values["calibration"]
                values["calibration"] = (float(scale), float(offset))
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise ModelError(f"{folder}/config.json: bad key 'inranker': {error}") from None

    def write(self, folder: str | Path) -> None:
        """Store the settings in the folder's `config.json`, which must exist; its other keys are kept."""
        path = Path(folder) / "config.json"
        config = read_json(path)
        config["inranker"] = asdict(self)
        write_json(path, config)


class EncoderSequences:
    """`[CLS] query [SEP] document [SEP]` with the tokens that the model's own tokenizer uses for a pair.

    `truncated_queries` counts the queries that were cut.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int) -> None:
        # The template is read off the tokenizer, so BERT, RoBERTa (two separators, no types), … all work.
        self.tokenizer = tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.max_length = max_length
        self.truncated_queries = 0
        probe = tokenizer.encode("a", "b")
        special = [i for i, flag in enumerate(probe.special_tokens_mask) if flag]
        plain = [i for i, flag in enumerate(probe.special_tokens_mask) if not flag]
        first = [i for i in plain if probe.sequence_ids[i] == 0]
        second = [i for i in plain if probe.sequence_ids[i] == 1]
        if not special or not first or not second:
            raise ModelError("the tokenizer has no template for a pair of texts: it cannot feed a cross-encoder")
        self._head = probe.ids[: first[0]]
        self._middle = probe.ids[first[-1] + 1 : second[0]]
        self._tail = probe.ids[second[-1] + 1 :]
        self._second_type = probe.type_ids[second[0]]
        self._middle_types = probe.type_ids[first[-1] + 1 : second[0]]
        self.specials = len(self._head) + len(self._middle) + len(self._tail)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts on their own, without special tokens and uncut."""
        return [e.ids for e in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def cut_query(self, ids: list[int]) -> list[int]:
        """The query's tokens, cut (and counted) only beyond half of the maximum length."""
        limit = self.max_length // 2
        if len(ids) <= limit:
            return ids
        self.truncated_queries += 1
        return ids[:limit]

    def prefix(self, query_ids: list[int]) -> TokenSequence:
        """What stands before the document, the same for all documents of a query."""
        types = [0] * (len(self._head) + len(query_ids)) + self._middle_types
        return TokenSequence([*self._head, *query_ids, *self._middle], types)

    @property
    def suffix(self) -> TokenSequence:
        """What stands behind the document; the document's own tokens have the type of its first."""
        return TokenSequence(self._tail, [self._second_type] * len(self._tail))

    def build(self, query_ids: list[int], document_ids: list[int]) -> TokenSequence:
        """The sequence of a pair from the two texts' token ids; `query_ids` have been through `cut_query`."""
        document = document_ids[: max(self.max_length - self.specials - len(query_ids), 0)]
        ids, types = self.prefix(query_ids)
        types = [*(types or []), *[self._second_type] * (len(document) + len(self._tail))]
        return TokenSequence([*ids, *document, *self._tail], types)

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> list[TokenSequence]:
        """Sequences of pairs of texts; every distinct text is tokenized once."""
        queries = list(dict.fromkeys(q for q, _ in pairs))
        documents = list(dict.fromkeys(d for _, d in pairs))
        query_ids = dict(zip(queries, map(self.cut_query, self.encode(queries)), strict=True))
        document_ids = dict(zip(documents, self.encode(documents), strict=True))
        return [self.build(query_ids[q], document_ids[d]) for q, d in pairs]
