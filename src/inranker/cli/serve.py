"""`inranker serve`: the HTTP server and its search page."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path
from typing import Annotated

import typer

from inranker.errors import InputError, require


def serve(
    model: Annotated[
        str, typer.Option(help="A model folder, a name that `inranker models list` shows, or a Hugging Face Hub id.")
    ] = "inranker-mini",
    run: Annotated[
        Path | None,
        typer.Option(
            help="The folder of a distillation: serves its student, searches its documents, and shows its teacher "
            "beside it on the page.",
            metavar="DIR",
        ),
    ] = None,
    collection: Annotated[
        str | None,
        typer.Option(
            help="What the page searches: a BEIR folder, ir_datasets:ID, a JSONL, CSV or Parquet file, or a folder of "
            "text files. [default: the documentation of the running Python]",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    language: Annotated[str, typer.Option(help="The collection's language, for BM25.")] = "en",
    page: Annotated[bool, typer.Option("--page/--no-page", help="Serve the search page.")] = True,
    teacher: Annotated[
        bool, typer.Option("--teacher/--no-teacher", help="With --run: load the teacher for the page.")
    ] = True,
    host: Annotated[str, typer.Option(help="Address to listen on; the default is this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any that is free.")] = 8080,
    api_key: Annotated[
        str | None,
        typer.Option(
            help="Ask for this key (`Authorization: Bearer KEY`) wherever something is ranked or searched. Better "
            "given in the environment, where other users of the machine do not see it.",
            envvar="INRANKER_API_KEY",
            show_default=False,
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="A host name that requests may ask for, beside localhost and addresses; repeatable.", metavar="NAME"
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(help="An origin whose pages may use this server from a browser; repeatable.", metavar="ORIGIN"),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes that rank, each with the whole model; one that dies is replaced.")
    ] = 1,
    backend: Annotated[str, typer.Option(help="onnx, torch, openvino, or auto.")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, int8, bf16, or auto.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of each process. [default: all cores, shared out]")
    ] = None,
    queue: Annotated[
        int, typer.Option(min=1, help="Requests that may wait or be scored at a time; beyond them: 429.")
    ] = 64,
    max_documents: Annotated[int, typer.Option(min=1, help="Documents a request.")] = 1000,
    max_characters: Annotated[int, typer.Option(min=1, help="Characters a request, all texts together.")] = 4_000_000,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens a request, as the model reads them.")] = 1_000_000,
    lenient: Annotated[
        bool, typer.Option("--lenient", help="Take Cohere requests with unknown fields, and any without a model.")
    ] = False,
    log_requests: Annotated[
        bool, typer.Option("--log-requests/--no-log-requests", help="A line a request, without anybody's text.")
    ] = True,
    log_text: Annotated[bool, typer.Option("--log-text", help="Put queries into those lines.")] = False,
) -> None:
    """Rank over HTTP as Cohere, Jina, TEI and vLLM do, with a page to search and compare.

    POST /v2/rerank is Cohere's, POST /v1/rerank Jina's, POST /rerank TEI's (`texts`) or Jina's (`documents`),
    POST /score vLLM's. GET /health, /info, /v1/models and /metrics tell how it is; /docs describes everything.

    Examples:

      inranker serve

      inranker serve --model runs/mine/export --port 9000

      inranker serve --run runs/quickstart

      INRANKER_API_KEY=secret inranker serve --host 0.0.0.0 --allow-host rank.example.org --workers 4
    """
    require("uvicorn", "serve")
    require("fastapi", "serve")
    from inranker.serve.limits import Limits
    from inranker.serve.run import serve as run_server
    from inranker.serve.setup import ServerSettings

    if api_key is not None and not api_key.strip():
        raise InputError("the API key is empty; leave it out, or give one")
    if run is not None and collection is not None:
        raise InputError("--run brings its own documents; leave out --collection")
    settings = ServerSettings(
        model=model,
        backend=backend,
        precision=precision,
        threads=threads,
        host=host,
        port=port,
        workers=workers,
        queue=queue,
        # Five bytes a character: escaped or Asian text rarely takes more, and the rest of the body is small.
        limits=Limits(max_documents, max_characters, max_tokens, body_bytes=5 * max_characters + 100_000),
        api_key=api_key,
        host_names=tuple(allow_host or ()),
        cors_origins=tuple(cors_origin or ()),
        lenient=lenient,
        log_text=log_text,
        log_requests=log_requests,
        page=page,
        collection=collection,
        language=language,
        run=run,
        teacher=teacher,
    )
    if api_key is None and not _is_local(host):
        _say(f"warning: everybody who reaches {host} can use this server; give it an --api-key")
    run_server(settings, lambda url: _say(f"serving at {url}" + (f" (search page: {url}/)" if page else "")))


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _say(text: str) -> None:
    print(f"inranker: {text}", file=sys.stderr, flush=True)
