"""Candidates of training queries: the source document, and negatives sampled from a run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from inranker.errors import InputError
from inranker.types import Run

if TYPE_CHECKING:
    from inranker.recipe import NegativeSettings

_WORD = re.compile(r"\w+")


def sample_candidates(
    run: Run,
    sources: Mapping[str, Collection[str]],
    contents: Mapping[str, str],
    settings: NegativeSettings,
    seed: int,
) -> dict[str, list[str]]:
    """For each query of `sources`: its source documents (sorted by id), then up to `count` negatives in run order.

    The source documents are taken out of the run first. Then `settings.hard` negatives come from its first
    `hard_depth`, the others uniformly from the rest of its first `depth`. Documents with the same words as a source
    are replaced, so a query has fewer negatives only when its run is too short. Keyed by (seed, query id): other
    queries, or their order, change nothing.

    Raises:
        InputError: a source document or a document of the run has no content.
    """
    candidates: dict[str, list[str]] = {}
    for query_id, source_ids in sources.items():
        found = (document.document_id for document in run.get(query_id, ()))
        ranking = [document_id for document_id in found if document_id not in source_ids][: settings.depth]
        try:
            sources_words = {same_words(contents[source_id]) for source_id in source_ids}
            negatives = _sample(ranking, sources_words, contents, settings, _generator(seed, query_id))
        except KeyError as error:
            raise InputError(f"query {query_id!r}: document {error.args[0]!r} is not in the collection") from None
        candidates[query_id] = sorted(source_ids) + negatives
    return candidates


def same_words(text: str) -> str:
    """What two duplicates share: their words, without case, punctuation and spacing."""
    return " ".join(_WORD.findall(text.casefold()))


def _sample(
    ranking: Sequence[str],
    sources_words: Collection[str],
    contents: Mapping[str, str],
    settings: NegativeSettings,
    random: np.random.Generator,
) -> list[str]:
    chosen: list[int] = []

    def draw(places: Sequence[int], count: int) -> None:
        # Contents are looked at only where a place is drawn: comparing all of a deep run costs more than its search.
        for place in random.permutation(np.asarray(places, dtype=np.int64)).tolist():
            if count <= 0:
                return
            if same_words(contents[ranking[place]]) not in sources_words:
                chosen.append(place)
                count -= 1

    draw(range(min(settings.hard_depth, len(ranking))), min(settings.hard, settings.count))
    taken = set(chosen)
    draw([place for place in range(len(ranking)) if place not in taken], settings.count - len(chosen))
    return [ranking[place] for place in sorted(chosen)]


def _generator(seed: int, query_id: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}\t{query_id}".encode("utf-8", "surrogatepass")).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))
