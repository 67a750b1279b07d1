"""A recipe: everything one run depends on, as validated settings. Read from TOML; unknown keys are refused.

Each class below is one table of `recipe.toml` and the settings of one room. Defaults are InRanker's where the paper or
its code gives them (arXiv 2401.06910), else the field's customary ones.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from inranker.errors import InputError, require
from inranker.registry import nearest

# pydantic comes with the extras; without them, whoever asks for a recipe is told so in one line.
require("pydantic", "distill")
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator  # noqa: E402


class Settings(BaseModel):
    """Base of all tables: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CollectionSettings(Settings):
    """Documents, and where they come with them queries and judgements.

    `source`: a BEIR folder, `ir_datasets:ID`, a JSONL, CSV or Parquet file, a folder of `.txt` and `.md` files, or
    `pythondocs` (the documentation of the running Python).
    """

    source: str
    split: str = "test"
    id_field: str = "_id"
    title_field: str = "title"
    text_field: str = "text"
    language: str = "en"
    passage_words: int = Field(200, ge=20, description="words a passage, where text files are split")
    passage_overlap: int = Field(40, ge=0)


class FilterSettings(Settings):
    """What happens to synthetic queries before they are used; None (in TOML: false) switches a filter off."""

    min_words: int = 2
    max_words: int = 48
    copied_span: int | None = Field(
        8, description="drop a query that shares this many words in a row with its document"
    )
    log_probability_top: int | None = Field(None, description="keep the n most probable queries (InPars-v1)")
    teacher_top: int | None = Field(
        None, description="keep the n queries whose source the teacher likes most (InPars-v2)"
    )
    round_trip: int | None = Field(None, description="BM25 must find the source document in its top k")
    near_duplicate: float | None = Field(0.8, description="word Jaccard from which two queries count as one")
    exclude_queries: str | None = Field(None, description="queries (JSONL, BEIR form) to which none may be close")
    exclude_jaccard: float = 0.6

    @field_validator("*", mode="before")
    @classmethod
    def _false_is_none(cls, value: Any) -> Any:
        return None if value is False else value


class ApiSettings(Settings):
    """An OpenAI-compatible server. The key is read from the environment and never written down."""

    base_url: str = "http://localhost:8000/v1"
    key_variable: str = "OPENAI_API_KEY"
    requests_per_minute: float = 600
    retries: int = 5
    budget: float | None = Field(None, description="stop before this much money is spent (currency of the prices)")
    price_input: float = Field(0.0, description="price of a million input tokens")
    price_output: float = Field(0.0, description="price of a million output tokens")


class GenerateSettings(Settings):
    """How a language model writes queries for documents."""

    model: str = "smollm2-135m-instruct"
    backend: Literal["transformers", "vllm", "openai"] = "transformers"
    prompts: list[str] = ["inpars"]
    documents: int | None = Field(None, description="how many documents get queries (seeded sample); None: all")
    queries_per_document: int = Field(1, ge=1, description="prompts take turns over a document's queries")
    document_tokens: int = Field(256, description="the document is cut to this many tokens in the prompt (InPars)")
    max_new_tokens: int = 64
    temperature: float = Field(0.0, ge=0, description="0: greedy")
    top_p: float = 1.0
    language: str = "en"
    dtype: str = "auto"
    batch_tokens: int = 16384
    shard_size: int = 256
    filters: FilterSettings = FilterSettings()
    api: ApiSettings = ApiSettings()


class RetrieveSettings(Settings):
    """First stage: BM25 (Lucene's variant), or a run file made elsewhere."""

    run: str | None = None
    k1: float = 0.9
    b: float = 0.4
    depth: int = 1000
    language: str | None = Field(None, description="stemmer and stop words; None: the collection's")


class NegativeSettings(Settings):
    """Candidates of a training query beside its source: `hard` from the top, the rest from anywhere in the run."""

    count: int = Field(9, ge=0)
    hard: int = Field(0, ge=0, description="how many of them come from the first `hard_depth`")
    hard_depth: int = 10
    depth: int = 1000


class TeacherSettings(Settings):
    """The large ranker whose logits are the labels."""

    kind: Literal["seq2seq", "cross-encoder", "causal", "query-likelihood", "bi-encoder", "ensemble"] = "cross-encoder"
    model: str = "inranker-mini"
    adapter: str | None = Field(None, description="LoRA adapter folder (causal, query-likelihood)")
    template: str | None = Field(None, description="causal: with {query} and {document}; None: the model's or ours")
    mode: Literal["strict", "legacy"] | None = None
    max_length: int = 512
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        "auto", description="auto: bfloat16 on a GPU, float32 on a CPU; int8: cross-encoder (exported) and seq2seq only"
    )
    batch_tokens: int = 16384
    members: list[TeacherSettings] = []

    @model_validator(mode="after")
    def _int8_where_there_is(self) -> TeacherSettings:
        if self.dtype == "int8" and self.kind not in ("cross-encoder", "seq2seq"):
            raise ValueError(f"dtype = int8 is for cross-encoder and seq2seq, not for {self.kind}: say auto")
        return self

    @property
    def by_int8_file(self) -> bool:
        """Whether an exported cross-encoder labels by its int8 file, on the CPU."""
        return self.kind == "cross-encoder" and self.dtype == "int8"


class LabelSettings(Settings):
    """How soft labels are computed and kept."""

    store: str | None = Field(None, description="label store; None: one in the user's cache, shared by all runs")
    shard_size: int = 2048


class TrainTeacherSettings(Settings):
    """Fine-tuning of a causal teacher on hard labels, for when there is none."""

    model: str
    method: Literal["lora", "full"] = "lora"
    rank: int = 16
    loss: Literal["listwise", "pointwise"] = "listwise"
    learning_rate: float = 1e-4
    epochs: float = 1
    queries_per_batch: int = 16
    batch_tokens: int = Field(16384, description="tokens a forward pass")
    negatives: NegativeSettings = NegativeSettings(count=4, hard=2)
    max_length: int = 320
    max_source_share: float = Field(0.3, description="largest share of the pairs that one source may have")
    dtype: str = "auto"


class StudentSettings(Settings):
    """The small ranker before training."""

    kind: Literal["encoder", "t5"] = "encoder"
    start: str = "inranker-mini"
    layers: list[int] | None = Field(None, description="which layers of the start to keep; None: all")
    max_length: int = 512
    dropout: float | None = Field(None, ge=0, lt=1, description="in training; None: the start's own")


class PhaseSettings(Settings):
    """One phase of the distillation: its data, loss and optimisation.

    `loss` is a name or a mix such as `{ margin_mse = 1.0, kl = 0.1 }`.
    """

    data: Literal["supervised", "synthetic", "both"]
    labels: Literal["soft", "hard"] = "soft"
    loss: dict[str, float] = {"mse": 1.0}
    temperature: float = Field(1.0, gt=0, description="divides both margins in `kl`")
    scale: float = Field(1.0, gt=0, description="the teacher's margins are multiplied by this in every loss")
    states: float = Field(
        0.0,
        ge=0,
        description="weight of following the uncut start from layer to layer (encoders with `student.layers`)",
    )
    learning_rate: float = 7e-5
    epochs: float = 1
    queries_per_batch: int = 32
    warmup: float = Field(0.05, description="share of the steps")
    weight_decay: float = 0.01
    evaluations: int = Field(
        4, ge=1, description="how often agreement with the teacher is measured on held-out queries"
    )
    patience: int = Field(2, description="evaluations without improvement before stopping early")

    @field_validator("loss", mode="before")
    @classmethod
    def _name_is_a_mix_of_one(cls, value: Any) -> Any:
        return {value: 1.0} if isinstance(value, str) else value


class TrainSettings(Settings):
    """What both phases share."""

    held_out: float = Field(0.1, gt=0, lt=1, description="share of the queries kept for choosing the checkpoint")
    batch_tokens: int = Field(16384, description="tokens a forward pass; larger batches are accumulated")
    dtype: str = "auto"
    phases: list[PhaseSettings] = [PhaseSettings(data="supervised"), PhaseSettings(data="synthetic")]


class EvaluateSettings(Settings):
    """What the student is measured on."""

    collections: list[CollectionSettings] = Field([], description="beside the recipe's own, if that has judgements")
    depth: int = 100
    metrics: list[str] = ["nDCG@10", "RR@10", "AP", "R@100"]
    fusion_weight: float | None = Field(
        None, ge=0, le=1, description="the student's share; None: chosen on held-out queries"
    )
    held_out_documents: float = Field(
        0.1, ge=0, lt=1, description="without judgements: share of the documents whose queries are kept for measuring"
    )
    samples: int = Field(10_000, description="bootstrap and permutation samples")


class ExportSettings(Settings):
    """What is written for the engine."""

    int8: bool = True


class SupervisedSettings(Settings):
    """Phase 1's queries. `collection` None: the run's own documents, with the queries of `split`."""

    collection: CollectionSettings | None = None
    split: str = "train"
    queries: int | None = Field(None, description="how many (seeded sample); None: all")
    negatives: NegativeSettings = NegativeSettings()


class Recipe(Settings):
    """A whole run."""

    name: str
    description: str = ""
    verified: bool = Field(True, description="False: nobody has run this recipe at full size yet")
    seed: int = 0
    collection: CollectionSettings
    supervised: SupervisedSettings | None = None
    generate: GenerateSettings = GenerateSettings()
    retrieve: RetrieveSettings = RetrieveSettings()
    negatives: NegativeSettings = NegativeSettings()
    train_teacher: TrainTeacherSettings | None = None
    teacher: TeacherSettings = TeacherSettings()
    label: LabelSettings = LabelSettings()
    student: StudentSettings = StudentSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    export: ExportSettings = ExportSettings()

    @model_validator(mode="before")
    @classmethod
    def _only_phase_2_without_supervised_queries(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("supervised") is None:
            train = values.get("train", {})
            if isinstance(train, dict) and "phases" not in train:
                return {**values, "train": {**train, "phases": [{"data": "synthetic"}]}}
        return values

    @model_validator(mode="after")
    def _phases_have_their_data(self) -> Recipe:
        if self.uses("supervised") and self.supervised is None:
            raise ValueError(
                "a phase wants supervised queries: add a table [supervised], or let its data be 'synthetic'"
            )
        if any(phase.states for phase in self.train.phases) and not (
            self.student.layers and self.student.kind == "encoder"
        ):
            raise ValueError("phase.states follows the layers that an encoder was cut from: set student.layers")
        if self.train_teacher is not None and self.supervised is None:
            raise ValueError("[train_teacher] learns from supervised queries: add a table [supervised]")
        return self

    def uses(self, kind: str) -> bool:
        """Whether a phase trains on queries of this kind, `supervised` or `synthetic`."""
        return any(phase.data in (kind, "both") for phase in self.train.phases)

    @property
    def soft_kinds(self) -> list[str]:
        """The kinds of queries that need the teacher's labels."""
        soft = [phase.data for phase in self.train.phases if phase.labels == "soft"]
        return [kind for kind in ("supervised", "synthetic") if kind in soft or "both" in soft]


SHIPPED_FOLDER = Path(__file__).parent / "recipes"


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in SHIPPED_FOLDER.glob("*.toml"))


def load_recipe(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read and validate a recipe: a TOML file, or the name of one that ships.

    Args:
        name_or_path: where it is.
        overrides: dotted keys and values that win over the file; a number in a key picks a list's item.

    Raises:
        InputError: no such recipe, bad TOML, an unknown key (the nearest known one is named) or a value out of range.
    """
    path = Path(name_or_path)
    if not path.is_file() and str(name_or_path) in shipped_recipes():
        path = SHIPPED_FOLDER / f"{name_or_path}.toml"
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path}: no such recipe file; recipes that ship: {', '.join(shipped_recipes())}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not TOML: {error}") from None
    for key, value in (overrides or {}).items():
        _override(values, key, value)
    return parse_recipe(values, str(path))


def _override(values: dict[str, Any], key: str, value: Any) -> None:
    table: Any = values
    *parents, last = key.split(".")
    try:
        for parent in parents:
            table = table[int(parent)] if isinstance(table, list) else table.setdefault(parent, {})
        table[int(last) if isinstance(table, list) else last] = value
    except (ValueError, IndexError, TypeError, AttributeError):
        raise InputError(f"--set {key}: there is nothing of that name to set in this recipe") from None


def parse_recipe(values: dict[str, Any], place: str = "recipe") -> Recipe:
    """Validate a recipe's values; errors as in `load_recipe`."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{place}: {_explain(error)}") from None


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _known_keys([part for part in first["loc"][:-1] if isinstance(part, str)])
        return f"unknown key {where!r}; {nearest(str(first['loc'][-1]), known)}{more}"
    return f"{where}: {first['msg']}{more}"


def _known_keys(loc: list[str]) -> list[str]:
    table: Any = Recipe
    for part in loc:
        annotation = table.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        table = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), table)
    return list(table.model_fields)
