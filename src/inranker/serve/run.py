"""Running the server: one process, or several under a supervisor that replaces those that die."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import uvicorn
from starlette.types import ASGIApp

from inranker.errors import InputError, InRankerError
from inranker.serve.metrics import SHARED_FOLDER_VARIABLE, logger
from inranker.serve.setup import ServerSettings, configure_logging, load_application

_BACKLOG = 2048
# Longer than the keep-alive of common clients and proxies, so that it is they who close an idle connection.
_KEEP_ALIVE_SECONDS = 75
_STABLE_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 10.0

Announce = Callable[[str], None]


def serve(settings: ServerSettings, announce: Announce = lambda url: None) -> None:
    """Serve until SIGTERM or SIGINT, then finish what was accepted.

    `announce` is told the server's address once it answers.

    Raises:
        InRankerError: the address is taken, or the model or the collection cannot be read.
    """
    configure_logging(settings)
    listener = bind(settings.host, settings.port)
    if settings.workers > 1:
        _Supervisor(settings, listener, announce).run()
    else:
        run_server(load_application(settings), listener, lambda: announce(address_of(listener)))


def bind(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes any that is free.

    Raises:
        InputError: the address is taken or not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # The protocol is named because asyncio switches Nagle's algorithm off only for sockets that say TCP; it would
        # cost every answer 40 ms.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        raise InputError(f"cannot listen on {host} port {port}: {error.strerror}; choose another --port") from None
    return listener


def address_of(listener: socket.socket) -> str:
    """The URL of a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """Tells when it answers, and ends by returning instead of by the signal that stopped it."""

    ready: Callable[[], None] = staticmethod(lambda: None)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def make_server(app: ASGIApp, ready: Callable[[], None] = lambda: None) -> uvicorn.Server:
    """A server for an application; its own logs are only warnings, since they would quote paths and query strings."""
    config = uvicorn.Config(
        app,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        access_log=False,
        log_config=None,
        log_level=logging.WARNING,
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="on",
    )
    server = _Server(config)
    server.ready = ready  # type: ignore[method-assign]
    return server


def run_server(app: ASGIApp, listener: socket.socket, ready: Callable[[], None]) -> None:
    """Serve an application on a bound socket until a signal."""
    make_server(app, ready).run(sockets=[listener])


# Several processes


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    started: float


class _Supervisor:
    """Keeps `settings.workers` processes that accept on one socket.

    The socket outlives them: while one is replaced, connections wait for the others.
    """

    def __init__(self, settings: ServerSettings, listener: socket.socket, announce: Announce) -> None:
        self.settings = settings
        self.listener = listener
        self.announce = announce
        self.announced = False
        self.stopping = False
        self.pause = 0.0
        self.context = multiprocessing.get_context("spawn")

    def run(self) -> None:
        """Run until a signal."""
        self.listener.listen(_BACKLOG)
        wake, waker = socket.socketpair()
        waker.setblocking(False)
        before = {s: signal.signal(s, self._stop) for s in (signal.SIGINT, signal.SIGTERM)}
        old_waker = signal.set_wakeup_fd(waker.fileno())
        workers: list[_Worker] = []
        with tempfile.TemporaryDirectory(prefix="inranker-metrics-") as folder:
            os.environ[SHARED_FOLDER_VARIABLE] = folder
            try:
                workers += [self._start() for _ in range(self.settings.workers)]
                while not self.stopping:
                    wait([wake, *(w.pipe for w in workers), *(w.process.sentinel for w in workers)])
                    workers = self._look_after(workers, folder)
            finally:
                self.listener.close()
                for worker in workers:
                    worker.process.terminate()
                for worker in workers:
                    worker.process.join()
                signal.set_wakeup_fd(old_waker)
                for number, handler in before.items():
                    signal.signal(number, handler)
                del os.environ[SHARED_FOLDER_VARIABLE]

    def _stop(self, number: int, frame: object) -> None:
        self.stopping = True

    def _start(self) -> _Worker:
        ours, theirs = self.context.Pipe(duplex=False)
        process = self.context.Process(target=work, args=(self.settings, self.listener, theirs))
        process.start()
        theirs.close()
        return _Worker(process, ours, time.monotonic())

    def _look_after(self, workers: list[_Worker], folder: str) -> list[_Worker]:
        return [self._replaced(w, folder) if self._listen_to(w) else w for w in workers]

    def _listen_to(self, worker: _Worker) -> bool:
        """Read a worker's news; whether it has ended.

        Raises:
            InRankerError: it says that it cannot start.
        """
        while not worker.pipe.closed and worker.pipe.poll():
            try:
                news = worker.pipe.recv()
            except EOFError:
                worker.pipe.close()
                break
            if news is not None:
                raise InputError(news)
            if not self.announced:
                self.announced = True
                self.announce(address_of(self.listener))
        return not worker.process.is_alive()

    def _replaced(self, worker: _Worker, folder: str) -> _Worker:
        from prometheus_client import multiprocess

        multiprocess.mark_process_dead(worker.process.pid, folder)
        worker.pipe.close()
        if self.stopping:
            return worker
        logger.error("worker %s ended (exit code %s); starting another", worker.process.pid, worker.process.exitcode)
        stable = time.monotonic() - worker.started > _STABLE_SECONDS
        self.pause = 0.0 if stable else min(max(0.1, 2 * self.pause), _LONGEST_PAUSE_SECONDS)
        time.sleep(self.pause)
        return self._start()


def work(settings: ServerSettings, listener: socket.socket, news: Connection) -> None:
    """A worker process: sends None through `news` when it answers, or why it cannot."""
    configure_logging(settings)
    _die_with_the_supervisor()
    try:
        app = load_application(replace(settings, threads=settings.threads_a_worker))
    except InRankerError as error:
        news.send(str(error))
        return
    run_server(app, listener, lambda: news.send(None))


def _die_with_the_supervisor() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="supervisor", daemon=True).start()
