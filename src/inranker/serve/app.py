"""The ASGI application: routes, and around them what every request passes through."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from inranker import __version__
from inranker.serve.cohere import Cohere
from inranker.serve.dialect import Dialect, RankRequest, decode, validate
from inranker.serve.jina import Jina
from inranker.serve.limits import BodyLimit
from inranker.serve.metrics import CONTENT_TYPE, AccessLog, Metrics, logger
from inranker.serve.openapi import describe_body, describe_refusals, document
from inranker.serve.problem import Kind, RequestError
from inranker.serve.ranking import RankingService
from inranker.serve.search import BackgroundSearch, CollectionInfo, SearchRequest, SearchResponse, SearchService
from inranker.serve.security import HostCheck, ResponseHeaders, check_key, check_media_type
from inranker.serve.tei import Tei
from inranker.serve.vllm import Vllm

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]

_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
}


@dataclass(frozen=True, slots=True)
class AppSettings:
    """Who may ask, and how strictly Cohere's fields are taken. `log_text` puts queries into the log."""

    api_key: str | None = None
    host_names: Sequence[str] = ()
    cors_origins: Sequence[str] = ()
    lenient: bool = False
    log_text: bool = False


class _ClientGoneError(Exception):
    """Nobody is there to read the answer."""


def build_app(
    ranking: RankingService,
    settings: AppSettings = AppSettings(),
    *,
    metrics: Metrics | None = None,
    search: BackgroundSearch | None = None,
    details: Mapping[str, Any] | None = None,
) -> ASGIApp:
    """The application; starting it up starts the services' worker threads, shutting it down drains them.

    Args:
        ranking: what ranks.
        settings: see `AppSettings`.
        metrics: what to count in.
        search: what the page searches; None: a page that only says so.
        details: further entries of `/info`.
    """
    return _Application(ranking, settings, metrics or Metrics(), search, dict(details or {})).wrapped()


class _Application:
    def __init__(
        self,
        ranking: RankingService,
        settings: AppSettings,
        metrics: Metrics,
        search: BackgroundSearch | None,
        details: dict[str, Any],
    ) -> None:
        self.ranking = ranking
        self.settings = settings
        self.metrics = metrics
        self.search = search
        self.details = details
        self.shapes: list[Any] = []
        self.started = int(time.time())
        self.cohere = Cohere(lenient=settings.lenient)
        self.jina = Jina(model_required=not settings.lenient)
        self.plain_jina = Jina(model_required=False)
        self.tei = Tei(details.get("device", "cpu"))
        self.vllm = Vllm()
        self.api = FastAPI(
            title="InRanker",
            version=__version__,
            lifespan=self._lifespan,
            docs_url=None,
            redoc_url=None,
            redirect_slashes=False,
        )
        self.api.add_exception_handler(HTTPException, self._on_http_exception)
        self._add_ranking()
        self._add_search()
        self._add_information()
        self._add_page()
        described = document(self.api, self.shapes, protected=settings.api_key is not None)
        self.api.openapi = lambda: described  # type: ignore[method-assign]

    def wrapped(self) -> ASGIApp:
        """The application inside what every request passes through, outermost last."""
        app: ASGIApp = BodyLimit(self.api, self.ranking.limits)
        app = HostCheck(app, self.settings.host_names, self._refusal)
        app = ResponseHeaders(app)
        if self.settings.cors_origins:
            app = CORSMiddleware(
                app,
                allow_origins=self.settings.cors_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["authorization", "content-type"],
                expose_headers=["retry-after"],
            )
        return AccessLog(app, self.metrics)

    @contextlib.asynccontextmanager
    async def _lifespan(self, api: FastAPI) -> AsyncIterator[None]:
        self.ranking.start()
        if self.search is not None:
            self.search.start()
        yield
        await asyncio.to_thread(self.ranking.close)
        if self.search is not None:
            await asyncio.to_thread(self.search.close)

    # Routes

    def _add_ranking(self) -> None:
        routes: list[tuple[str, list[Dialect], str]] = [
            ("/v2/rerank", [self.cohere], "Rerank, as Cohere v2"),
            ("/v1/rerank", [self.jina], "Rerank, as Jina"),
            ("/rerank", [self.tei, self.plain_jina], "Rerank, as TEI (`texts`) or Jina (`documents`)"),
            ("/score", [self.vllm], "Score pairs, as vLLM"),
        ]
        for path, dialects, summary in routes:
            self._post(path, summary, self._rank_with(dialects), dialects)

    def _rank_with(self, dialects: Sequence[Dialect]) -> Handler:
        async def handle(request: Request) -> Response:
            check_key(request, self.settings.api_key)
            check_media_type(request)
            values = decode(await request.body())
            dialect = dialects[0]
            # `/rerank` is TEI's and Jina's: the field that holds the documents tells which.
            if len(dialects) > 1 and isinstance(values, dict) and "documents" in values and "texts" not in values:
                dialect = dialects[1]
            try:
                ranked = dialect.parse(values)
                with self._noted(request, ranked):
                    outcome = await _unless_gone(request, self.ranking.rank(ranked))
            except RequestError as problem:
                return _refused(dialect, problem)
            self.metrics.queue_seconds.observe(outcome.seconds["queue"])
            request.scope["inranker.notes"].append(f"{outcome.tokens} tokens")
            body = dialect.render(ranked, outcome, self.ranking.model)
            return _json(body, headers=dialect.headers(ranked, outcome))

        return handle

    @contextlib.contextmanager
    def _noted(self, request: Request, ranked: RankRequest) -> Iterator[None]:
        notes = request.scope["inranker.notes"]
        notes.append(f"{len(ranked.documents)} documents")
        if self.settings.log_text:
            notes.append(repr(ranked.queries[0]))
        self.metrics.places.inc()
        try:
            yield
        except _ClientGoneError:
            self.metrics.cancelled.inc()
            raise
        finally:
            self.metrics.places.dec()

    def _add_search(self) -> None:
        async def handle(request: Request) -> Response:
            check_key(request, self.settings.api_key)
            check_media_type(request)
            search = self._searchable()
            asked = validate(SearchRequest, decode(await request.body()))
            if self.settings.log_text:
                request.scope["inranker.notes"].append(repr(asked.query))
            return _json(await _unless_gone(request, search.search(asked)))

        async def describe(request: Request) -> Response:
            return _json(self._searchable().info)

        shape = Jina()
        self._post("/search", "Search the collection and rerank", handle, [shape], SearchRequest, SearchResponse)
        self._get("/collection", "What can be searched", describe, CollectionInfo, {404: shape.error, 503: shape.error})

    def _searchable(self) -> SearchService:
        if self.search is None:
            raise RequestError(Kind.NOT_FOUND, "this server has no collection; start it with --collection")
        return self.search.get()

    def _add_information(self) -> None:
        async def health(request: Request) -> Response:
            if self.ranking.queue.healthy:
                return _json({"status": "ok"})
            raise RequestError(Kind.UNAVAILABLE, "the server is not ranking")

        async def info(request: Request) -> Response:
            limits = self.ranking.limits
            return _json(
                {
                    "model_id": self.ranking.model,
                    "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
                    "auto_truncate": True,
                    "max_client_batch_size": limits.documents,
                    "max_concurrent_requests": self.ranking.queue.places,
                    "max_batch_tokens": self.ranking.queue.engine.batch_tokens,
                    "max_request_characters": limits.characters,
                    "max_request_tokens": limits.tokens,
                    "max_request_bytes": limits.body_bytes,
                    "version": __version__,
                    **self.details,
                }
            )

        async def models(request: Request) -> Response:
            model = {"id": self.ranking.model, "object": "model", "created": self.started, "owned_by": "inranker"}
            return _json({"object": "list", "data": [model]})

        async def metrics(request: Request) -> Response:
            return Response(self.metrics.render(), media_type=CONTENT_TYPE)

        self._get("/health", "Whether the server ranks", health, dict[str, str], {503: self.tei.error})
        self._get("/info", "The model and the limits", info, dict[str, Any])
        self._get("/v1/models", "The model, as OpenAI lists them", models, dict[str, Any])
        text: dict[int | str, dict[str, Any]] = {
            200: {"description": "Prometheus's text format", "content": {"text/plain": {}}}
        }
        self.api.add_api_route(
            "/metrics",
            metrics,
            summary="Numbers for Prometheus",
            responses=text,
            response_class=Response,
            tags=["about"],
        )

    def _add_page(self) -> None:
        for path, (name, media_type) in _PAGE.items():
            content = resources.files("inranker.serve").joinpath("page", name).read_bytes()
            self.api.add_api_route(path, _fixed(content, media_type), include_in_schema=False)

    def _post(
        self,
        path: str,
        summary: str,
        handle: Handler,
        dialects: Sequence[Dialect],
        request_shape: Any = None,
        response_shape: Any = None,
    ) -> None:
        shapes = [request_shape] if request_shape else [d.request for d in dialects]
        self.shapes += shapes
        self.api.add_api_route(
            path,
            _guarded(handle, dialects[0]),
            methods=["POST"],
            name=path,
            summary=summary,
            responses=describe_refusals(dialects, response_shape),
            openapi_extra=describe_body(shapes),
            response_class=Response,
            tags=["rank" if request_shape is None else "search"],
        )

    def _get(
        self,
        path: str,
        summary: str,
        handle: Handler,
        shape: Any,
        refusals: Mapping[int, Any] | None = None,
    ) -> None:
        responses: dict[int | str, Any] = {status: {"model": error} for status, error in (refusals or {}).items()}
        self.api.add_api_route(
            path,
            _guarded(handle, self._dialect_of(path)),
            name=path,
            summary=summary,
            responses={200: {"model": shape}, **responses},
            tags=["about"],
        )

    # Refusals

    def _dialect_of(self, path: str) -> Dialect:
        if path.startswith("/v2/"):
            return self.cohere
        return {"/rerank": self.tei, "/health": self.tei, "/score": self.vllm}.get(path, self.jina)

    def _refusal(self, path: str, problem: RequestError) -> Response:
        return _refused(self._dialect_of(path), problem)

    async def _on_http_exception(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        kind = {405: Kind.METHOD, 404: Kind.NOT_FOUND}.get(error.status_code, Kind.INVALID)
        words = {Kind.METHOD: "method not allowed", Kind.NOT_FOUND: "not found"}.get(kind, "bad request")
        return self._refusal(request.url.path, RequestError(kind, words, headers=error.headers))


def _fixed(content: bytes, media_type: str) -> Handler:
    async def handle(request: Request) -> Response:
        return Response(content, media_type=media_type)

    return handle


def _json(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    text = body.model_dump_json(exclude_unset=True) if isinstance(body, BaseModel) else json.dumps(body)
    return Response(text, status, headers, media_type="application/json")


def _refused(dialect: Dialect, problem: RequestError) -> Response:
    return _json(dialect.refuse(problem), dialect.status(problem.kind), problem.headers)


def _guarded(handle: Handler, dialect: Dialect) -> Handler:
    """Whatever goes wrong in a handler becomes an answer that tells nothing, and a log line without anybody's text."""

    async def guarded(request: Request) -> Response:
        try:
            return await handle(request)
        except RequestError as problem:
            return _refused(dialect, problem)
        except _ClientGoneError:
            return Response(status_code=499)  # nobody reads it; the log and the metrics do
        except Exception as error:
            # An exception's message may quote a request; its type and its frames do not.
            frames = "".join(traceback.format_tb(error.__traceback__))
            logger.error("%s while answering a request:\n%s", type(error).__name__, frames)
            return _refused(
                dialect, RequestError(Kind.INTERNAL, "the server failed on this request; its log says where")
            )

    return guarded


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of some work, which is given up when the client goes away."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise _ClientGoneError
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)
