"""What a recipe will cost, before anything is done: counts, tokens, time on this machine, and money for an API."""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass
from functools import cache
from itertools import islice

from inranker.errors import InRankerError
from inranker.pipeline.workspace import Workspace
from inranker.recipe import Recipe, TeacherSettings

# Estimates for texts that nobody has tokenized yet.
TOKENS_A_WORD = 1.35
PROMPT_TOKENS = 320  # few-shot examples; computed once a shard where the back-end is ours
QUERY_TOKENS = 16
# What scoring and training reach of the speed of a large matrix product, by measurement: on a CPU .5 with long
# documents and 1 with the quickstart's short ones, on a GPU MiniLM .25 and a causal 1.5B .45 to .65. Writing a token at
# a time reaches less, an exported int8 model on the CPU more: 2.5 (AVX2) to 7 times (AMX).
EFFICIENCY = {"cpu": 0.5, "cuda": 0.35}
WRITING, INT8 = 0.6, 3.0


@dataclass(frozen=True)
class Estimate:
    """A stage's work. `seconds` is None where the size of the model is unknown, `cost` None where nothing is paid."""

    stage: str
    items: int
    unit: str
    tokens: int = 0
    seconds: float | None = None
    cost: float | None = None


def estimate(workspace: Workspace) -> list[Estimate]:
    """Estimates of the stages that cost something, in order.

    Reads the collection, and no model beyond the sizes of those that are on this machine.
    """
    recipe = workspace.recipe
    documents = workspace.collection.documents
    sample = list(islice(documents, 2000))
    words = sum(len(d.content.split()) for d in sample) / max(len(sample), 1)
    document_tokens = words * TOKENS_A_WORD
    supervised = len(workspace.supervised.queries) if workspace.supervised else 0
    chosen = min(recipe.generate.documents or len(documents), len(documents))
    queries = chosen * recipe.generate.queries_per_document
    found = [Estimate("collection", len(documents), "documents")]
    found.append(_generate(recipe, queries, document_tokens))
    pairs = _pairs(recipe, supervised, queries)
    length = min(document_tokens + QUERY_TOKENS, recipe.teacher.max_length)
    if recipe.train_teacher is not None:
        settings = recipe.train_teacher
        count = round(supervised * (1 + settings.negatives.count) * settings.epochs)
        tokens = round(count * min(document_tokens + QUERY_TOKENS, settings.max_length))
        found.append(_work("train-teacher", count, "pairs", tokens, settings.model, passes=3))
    teachers = recipe.teacher.members or [_teacher(workspace)]
    labels = sum(pairs[kind] for kind in recipe.soft_kinds)
    found.extend(_labels("label", labels, "pairs", round(labels * length), teacher) for teacher in teachers)
    start = recipe.student.start
    trained = sum(
        (sum(pairs.values()) if phase.data == "both" else pairs[phase.data]) * phase.epochs
        for phase in recipe.train.phases
    )
    length = min(document_tokens + QUERY_TOKENS, recipe.student.max_length)
    found.append(_work("train", round(trained), "pairs", round(trained * length), start, passes=3))
    judged = len(workspace.collection.queries) if workspace.collection.qrels else 0
    measured = judged or round(queries * recipe.evaluate.held_out_documents)
    scored = measured * recipe.evaluate.depth
    rankers = 1 + len(recipe.train.phases)  # before, and after each phase
    found.append(_work("evaluate", scored * rankers, "pairs by the student", round(scored * rankers * length), start))
    found.extend(
        _labels("evaluate", scored, f"pairs by {teacher.model}", round(scored * length), teacher)
        for teacher in teachers
    )
    return found


def _teacher(workspace: Workspace) -> TeacherSettings:
    trained, settings = workspace.recipe.train_teacher, workspace.teacher_settings
    # One that the run trains in full has no folder yet: it is as large as what it starts from.
    return settings if trained is None else settings.model_copy(update={"model": trained.model})


def _pairs(recipe: Recipe, supervised: int, synthetic: int) -> dict[str, int]:
    negatives = recipe.supervised.negatives.count if recipe.supervised else 0
    return {"supervised": supervised * (1 + negatives), "synthetic": synthetic * (1 + recipe.negatives.count)}


def _generate(recipe: Recipe, queries: int, document_tokens: float) -> Estimate:
    settings = recipe.generate
    own = round(queries * min(document_tokens, settings.document_tokens))
    if settings.backend != "openai":
        return _work("generate", queries, "queries", own + queries * QUERY_TOKENS, settings.model, writes=True)
    read, written = own + queries * PROMPT_TOKENS, queries * QUERY_TOKENS
    api = settings.api
    cost = (read * api.price_input + written * api.price_output) / 1e6
    return Estimate("generate", queries, "queries", read + written, 60 * queries / api.requests_per_minute, cost)


def _work(
    stage: str,
    items: int,
    unit: str,
    tokens: int,
    model: str,
    *,
    passes: int = 1,
    int8: bool = False,
    writes: bool = False,
) -> Estimate:
    parameters = _parameters(model, multiplied=not writes)  # whoever writes multiplies by the whole vocabulary
    seconds = None
    if parameters is not None:
        speed = INT8 * _operations_per_second("cpu") if int8 else _operations_per_second()
        # Two operations a parameter and token forward, twice that backward.
        seconds = 2.0 * passes * parameters * tokens / (speed * (WRITING if writes else 1))
    return Estimate(stage, items, unit, tokens, seconds)


def _labels(stage: str, items: int, unit: str, tokens: int, teacher: TeacherSettings) -> Estimate:
    return _work(stage, items, unit, tokens, teacher.model, int8=teacher.by_int8_file)


def _parameters(model: str, multiplied: bool) -> int | None:
    """Parameters of a model that is on this machine; of others, what their name says (`monot5-3b`, `smollm2-135m`)."""
    from inranker.models import list_models, resolve
    from inranker.pipeline.measure import count_parameters

    known = {status.name: status.path for status in list_models()}
    if known.get(model) is not None or model.startswith((".", "/")):
        with contextlib.suppress(InRankerError):
            if (found := count_parameters(resolve(model), multiplied)) is not None:
                return found
    named = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", model.lower())
    return round(float(named[1]) * {"b": 1e9, "m": 1e6}[named[2]]) if named else None


@cache
def _operations_per_second(kind: str | None = None) -> float:
    """What models will reach on the device that they will run on, from a matrix product of a fraction of a second."""
    import torch

    from inranker.label.teachers import pick_device, pick_dtype

    device = torch.device(kind) if kind else pick_device()
    size = 8192 if device.type == "cuda" else 1024
    matrix = torch.randn(size, size, device=device, dtype=pick_dtype("auto", device))

    def product() -> None:
        (matrix @ matrix).sum().item()

    product()
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < 0.3:
        product()
        done += 1
    return EFFICIENCY[device.type] * done * 2.0 * size**3 / (time.perf_counter() - started)
