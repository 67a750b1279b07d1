"""From settings to a running application: the model, the collection, the teacher."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inranker.errors import InputError, MissingExtra
from inranker.rank.machine import available_threads
from inranker.serve.limits import Limits

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from inranker.collection import Collection
    from inranker.serve.ranking import RankingService
    from inranker.serve.search import BackgroundSearch, SearchService

DEFAULT_COLLECTION = "pythondocs"
_EXAMPLES = 4
_FILE_ENDINGS = (".jsonl", ".csv", ".tsv", ".parquet", ".gz", ".gguf")


@dataclass(frozen=True)
class ServerSettings:
    """Everything a server process depends on; passed to workers as it is.

    `run` is a distillation's folder: its student, documents and teacher take the place of `model` and `collection`.
    """

    model: str = "inranker-mini"
    backend: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    queue: int = 64
    limits: Limits = field(default_factory=Limits)
    api_key: str | None = field(default=None, repr=False)
    host_names: Sequence[str] = ()
    cors_origins: Sequence[str] = ()
    lenient: bool = False
    log_text: bool = False
    log_requests: bool = True
    page: bool = True
    collection: str | None = None
    language: str = "en"
    run: Path | None = None
    teacher: bool = True

    @property
    def threads_a_worker(self) -> int:
        """CPU threads for each of several workers."""
        return self.threads or max(available_threads() // self.workers, 1)


def load_application(settings: ServerSettings) -> ASGIApp:
    """The application, with its model loaded and tried.

    A collection that was asked for by name is read here; the default one is read while the server ranks already.

    Raises:
        InRankerError: the model, the run or the collection cannot be read.
    """
    from inranker.serve.app import AppSettings, build_app
    from inranker.serve.metrics import Metrics

    metrics = Metrics()
    ranking, details = _load_ranking(settings, metrics)
    search = _search(settings, ranking) if settings.page else None
    if search is not None and (settings.collection or settings.run):
        search.load()
    return build_app(
        ranking,
        AppSettings(
            settings.api_key,
            [settings.host, *settings.host_names],
            settings.cors_origins,
            settings.lenient,
            settings.log_text,
        ),
        metrics=metrics,
        search=search,
        details=details,
    )


def configure_logging(settings: ServerSettings) -> None:
    """Log to standard error."""
    from inranker.serve.metrics import logger

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO if settings.log_requests else logging.WARNING)


def _load_ranking(settings: ServerSettings, metrics: Any) -> tuple[RankingService, dict[str, Any]]:
    from inranker.rank.reranker import Reranker
    from inranker.serve.engine import RerankerEngine
    from inranker.serve.queue import RankQueue
    from inranker.serve.ranking import RankingService

    source = student_of(settings.run) if settings.run else settings.model
    reranker = Reranker.load(source, settings.backend, precision=settings.precision, threads=settings.threads)
    reranker.scores([("warm up", "a first pair, so that the first request finds everything in place")])
    name = settings.run.resolve().name if settings.run else shown_name(settings.model)
    backend = reranker.backend
    details = {
        "backend": backend.name,
        "model_dtype": backend.precision,
        "device": str(getattr(backend, "device", "cpu")),
        "max_input_length": reranker.sequences.max_length,
        "architecture": reranker.folder.settings.architecture,
    }
    queue = RankQueue(RerankerEngine(reranker, name), settings.queue, metrics.batch)
    return RankingService(queue, settings.limits), details


def shown_name(source: str) -> str:
    """What clients are told of a model or a collection: its name, or the last part of its path without the ending."""
    path = Path(source)
    if path.is_dir():
        return path.resolve().name
    return path.stem if path.is_absolute() or path.suffix in _FILE_ENDINGS else source


def student_of(run: Path) -> Path:
    """The student of a distillation's folder, exported if that was done.

    Raises:
        InputError: there is none.
    """
    for folder in (run / "export", run / "train" / "student"):
        if (folder / "config.json").is_file():
            return folder
    raise InputError(f"{run}: no student here; give the folder of a distillation that is done")


def _search(settings: ServerSettings, ranking: RankingService) -> BackgroundSearch:
    from inranker.serve.search import BackgroundSearch

    if settings.run is not None:
        run = settings.run
        return BackgroundSearch(lambda: _search_of_run(run, settings, ranking))
    return BackgroundSearch(lambda: _search_of_collection(settings, ranking))


def _search_of_collection(settings: ServerSettings, ranking: RankingService) -> SearchService:
    from inranker.collection import read_collection
    from inranker.recipe import CollectionSettings
    from inranker.retrieve import BM25
    from inranker.serve.search import SearchService

    source = settings.collection or DEFAULT_COLLECTION
    collection = read_collection(CollectionSettings(source=source, language=settings.language))
    index = BM25.index(collection.documents, language=settings.language)
    return SearchService(shown_name(source), collection.documents, index, ranking, examples=_examples(collection))


def _search_of_run(run: Path, settings: ServerSettings, ranking: RankingService) -> SearchService:
    from inranker.pipeline import Workspace
    from inranker.recipe import parse_recipe
    from inranker.serve.search import SearchService
    from inranker.store import read_json

    recipe = parse_recipe(read_json(run / "recipe.json"), str(run / "recipe.json"))
    workspace = Workspace(recipe, run)
    examples = [query.text for query in (workspace.held_out or workspace.synthetic)[:_EXAMPLES]]
    return SearchService(
        shown_name(recipe.collection.source),
        workspace.documents,
        workspace.index(recipe.collection),
        ranking,
        _load_teacher(workspace, settings) if settings.teacher else None,
        examples,
    )


def _load_teacher(workspace: Any, settings: ServerSettings) -> RankingService | None:
    from inranker.serve.engine import TeacherEngine
    from inranker.serve.metrics import logger
    from inranker.serve.queue import RankQueue
    from inranker.serve.ranking import RankingService

    try:
        teacher = workspace.teacher
    except MissingExtra as error:
        logger.warning("no teacher to compare with: %s", error)
        return None
    name = shown_name(workspace.teacher_settings.model)
    service = RankingService(RankQueue(TeacherEngine(teacher, name), settings.queue), settings.limits)
    service.start()
    return service


def _examples(collection: Collection) -> list[str]:
    return [query.text for query in collection.queries[:_EXAMPLES]]
