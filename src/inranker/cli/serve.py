"""`inranker serve`: the HTTP server and its search page."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path

import click

from inranker.cli.parameters import PATH, POSITIVE
from inranker.cli.rank import model_option
from inranker.errors import InputError, require


@click.command()
@model_option
@click.option(
    "--run",
    type=PATH,
    metavar="DIR",
    help="The folder of a distillation: serves its student, searches its documents, and shows its teacher beside it on "
    "the page.",
)
@click.option(
    "--collection",
    metavar="DIR",
    help="What the page searches: a BEIR folder, ir_datasets:ID, a JSONL, CSV or Parquet file, or a folder of text "
    "files. [default: the documentation of the running Python]",
)
@click.option("--language", default="en", help="The collection's language, for BM25.")
@click.option("--page/--no-page", default=True, help="Serve the search page.")
@click.option("--teacher/--no-teacher", default=True, help="With --run: load the teacher for the page.")
@click.option("--host", default="127.0.0.1", help="Address to listen on; the default is this machine alone.")
@click.option(
    "--port", type=click.IntRange(min=0, max=65535), default=8080, help="Port to listen on; 0: any that is free."
)
@click.option(
    "--api-key",
    envvar="INRANKER_API_KEY",
    show_envvar=True,
    help="Ask for this key (`Authorization: Bearer KEY`) wherever something is ranked or searched. Better given in the "
    "environment, where other users of the machine do not see it.",
)
@click.option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="A host name that requests may ask for, beside localhost and addresses; repeatable.",
)
@click.option(
    "--cors-origin",
    multiple=True,
    metavar="ORIGIN",
    help="An origin whose pages may use this server from a browser; repeatable.",
)
@click.option(
    "--workers",
    type=POSITIVE,
    default=1,
    help="Processes that rank, each with the whole model; one that dies is replaced.",
)
@click.option("--backend", default="auto", help="native, onnx, torch, openvino, or auto.")
@click.option("--precision", default="auto", help="fp32, int8, bf16, or auto.")
@click.option("--threads", type=POSITIVE, help="CPU threads of each process. [default: all cores, shared out]")
@click.option(
    "--queue",
    type=POSITIVE,
    default=64,
    help="Requests that may wait or be scored at a time; beyond them: 429.",
)
@click.option("--max-documents", type=POSITIVE, default=1000, help="Documents a request.")
@click.option("--max-characters", type=POSITIVE, default=4_000_000, help="Characters a request, all texts together.")
@click.option("--max-tokens", type=POSITIVE, default=1_000_000, help="Tokens a request, as the model reads them.")
@click.option("--lenient", is_flag=True, help="Take Cohere requests with unknown fields, and any without a model.")
@click.option("--log-requests/--no-log-requests", default=True, help="A line a request, without anybody's text.")
@click.option("--log-text", is_flag=True, help="Put queries into those lines.")
def serve(
    model: str,
    run: Path | None,
    collection: str | None,
    language: str,
    page: bool,
    teacher: bool,
    host: str,
    port: int,
    api_key: str | None,
    allow_host: tuple[str, ...],
    cors_origin: tuple[str, ...],
    workers: int,
    backend: str,
    precision: str,
    threads: int | None,
    queue: int,
    max_documents: int,
    max_characters: int,
    max_tokens: int,
    lenient: bool,
    log_requests: bool,
    log_text: bool,
) -> None:
    """Rank over HTTP as Cohere, Jina, TEI and vLLM do, with a page to search and compare.

    POST /v2/rerank is Cohere's, POST /v1/rerank Jina's, POST /rerank TEI's (`texts`) or Jina's (`documents`),
    POST /score vLLM's. GET /health, /info, /v1/models and /metrics tell how it is; /docs describes everything.

    \b
    Examples:
      inranker serve
      inranker serve --model runs/mine/export --port 9000
      inranker serve --run runs/quickstart
      INRANKER_API_KEY=secret inranker serve --host 0.0.0.0 \\
        --allow-host rank.example.org --workers 4
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
        host_names=allow_host,
        cors_origins=cors_origin,
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
