"""The server under load and abuse, on the loopback interface alone. Every answer is checked against the engine's own.

    python benchmarks/serve_load.py                       # everything, about four minutes
    python benchmarks/serve_load.py latency throughput    # some of it
    python benchmarks/serve_load.py --seconds 5           # a quick look

Prints one JSON object a scenario; exit code 1 if anything that must hold did not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil

from inranker.rank.reranker import Reranker

WORDS = [
    a + b for a in ("bar", "con", "fin", "gar", "lo", "mar", "pen", "sto", "ten", "ver") for b in ("", "t", "ing", "al")
]
JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Case:
    """A request and what the engine says to it."""

    body: dict[str, Any]
    scores: dict[int, float]

    def wrong(self, answer: httpx.Response) -> str | None:
        """What is wrong with an answer of status 200: lost results, other scores (beyond 1e-4), another order."""
        results = answer.json()["results"]
        got = {r["index"]: r["relevance_score"] for r in results}
        if set(got) != set(self.scores):
            return "results are missing"
        if any(abs(got[i] - score) > 1e-4 for i, score in self.scores.items()):
            return "scores of another request, or wrong ones"
        ordered = [self.scores[r["index"]] for r in results]
        return None if all(a >= b - 2e-4 for a, b in pairwise(ordered)) else "wrong order"


def make_cases(reranker: Reranker, count: int, documents: int, words: int, seed: int) -> list[Case]:
    """Requests of `documents` documents of `words` words in the mean, with the engine's scores."""
    rng = random.Random(seed)

    def text(mean: float) -> str:
        return " ".join(rng.choices(WORDS, k=max(1, round(rng.lognormvariate(0, 0.5) * mean))))

    cases = []
    for _ in range(count):
        body = {"model": "any", "query": text(7), "documents": [text(words) for _ in range(documents)]}
        ranked = reranker.rank(body["query"], body["documents"])
        cases.append(Case(body, {r.index: r.score for r in ranked}))
    return cases


@contextlib.contextmanager
def serving(model: str, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process of its own, and its address."""
    program = Path(sys.executable).with_name("inranker")
    command = [str(program), "serve", "--model", model, "--port", "0", "--no-page", "--no-log-requests", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        if "serving at" not in line:
            sys.exit(line + process.stderr.read())
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield process, line.split()[-1]
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(60)


def memory_of(process: subprocess.Popen[str]) -> int:
    """Resident bytes of a server and its workers."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    return sum(member.memory_info().rss for member in family)


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of the values do not exceed."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def milliseconds(values: list[float]) -> dict[str, float]:
    """Percentiles in milliseconds."""
    return {f"p{round(100 * s)}": round(1000 * percentile(values, s), 1) for s in (0.5, 0.95, 0.99)}


# Scenarios: each gives figures and a list of what must hold but does not


def latency(arguments: argparse.Namespace, reranker: Reranker) -> tuple[dict[str, Any], list[str]]:
    """A lone client against the engine in this process, taking turns so that the machine's moods hit both."""
    cases = make_cases(reranker, 12, 30, 60, seed=1)
    with serving(arguments.model) as (_, url), httpx.Client(base_url=url, timeout=60) as client:
        engine: list[float] = []
        served: list[float] = []
        for case in cases[:2]:
            client.post("/v2/rerank", json=case.body)
        until = time.monotonic() + arguments.seconds / 2
        wrong = []
        while time.monotonic() < until:
            for case in cases:
                started = time.perf_counter()
                reranker.rank(case.body["query"], case.body["documents"])
                middle = time.perf_counter()
                answer = client.post("/v2/rerank", json=case.body)
                served.append(time.perf_counter() - middle)
                engine.append(middle - started)
                wrong += [w for w in [case.wrong(answer)] if w]
    overhead = 1000 * statistics.median(s - e for s, e in zip(served, engine, strict=True))
    figures = {
        "requests": len(served),
        "engine_ms": milliseconds(engine),
        "http_ms": milliseconds(served),
        "median_overhead_ms": round(overhead, 2),
    }
    return figures, wrong + (["a lone request costs more than 5 ms over the engine"] if overhead > 5 else [])


def throughput(arguments: argparse.Namespace, reranker: Reranker) -> tuple[dict[str, Any], list[str]]:
    """16 clients with 30 documents each against the engine's own pairs a second, in alternating blocks."""
    cases = make_cases(reranker, 32, 30, 60, seed=2)
    pairs = [(case.body["query"], d) for case in cases for d in case.body["documents"]]
    block = arguments.seconds / 20
    engine_rates, http_rates, times, problems = [], [], [], []
    with serving(arguments.model) as (_, url):
        for _ in range(10):
            scored, started = 0, time.monotonic()
            while time.monotonic() - started < block:
                reranker.scores(pairs[:240])
                scored += 240
            engine_rates.append(scored / (time.monotonic() - started))
            started = time.monotonic()
            counts, spent, wrong = asyncio.run(run_clients(url, cases, 16, block))
            http_rates.append(30 * counts[200] / (time.monotonic() - started))
            times += spent
            problems += wrong + [f"status {status}" for status in counts if status != 200]
    share = statistics.median(h / e for h, e in zip(http_rates, engine_rates, strict=True))
    figures = {
        "engine_pairs_per_second": round(statistics.median(engine_rates), 1),
        "http_pairs_per_second": round(statistics.median(http_rates), 1),
        "shares": [round(h / e, 2) for h, e in zip(http_rates, engine_rates, strict=True)],
        "share_of_engine": round(share, 3),
        "latency_ms": milliseconds(times),
    }
    return figures, problems + (["less than 85% of the engine's throughput"] if share < 0.85 else [])


async def run_clients(
    url: str, cases: list[Case], clients: int, seconds: float, offset: int = 0
) -> tuple[Counter[int], list[float], list[str]]:
    """Clients that ask one request after the other: status counts, seconds of the successes, what was wrong."""
    counts: Counter[int] = Counter()
    times: list[float] = []
    wrong: list[str] = []
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        until = time.monotonic() + seconds

        async def one(number: int) -> None:
            rng = random.Random(offset + number)
            while time.monotonic() < until:
                case = rng.choice(cases)
                started = time.perf_counter()
                try:
                    answer = await client.post("/v2/rerank", json=case.body)
                except httpx.HTTPError as error:
                    wrong.append(f"no answer: {type(error).__name__}")
                    continue
                counts[answer.status_code] += 1
                if answer.status_code == 200:
                    times.append(time.perf_counter() - started)
                    wrong.extend(w for w in [case.wrong(answer)] if w)
                elif answer.status_code == 429:
                    await asyncio.sleep(min(float(answer.headers["retry-after"]), 2) * rng.uniform(0.1, 1))

        await asyncio.gather(*(one(i) for i in range(clients)))
    return counts, times, wrong


def overload(arguments: argparse.Namespace, reranker: Reranker) -> tuple[dict[str, Any], list[str]]:
    """200 clients against a queue of 16: refusals, but no lost or mixed-up answer and no growth of memory."""
    cases = make_cases(reranker, 64, 8, 20, seed=3)
    with serving(arguments.model, "--queue", "16") as (process, url):
        asyncio.run(run_clients(url, cases, 32, 2))
        before = peak = memory_of(process)
        done = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.2):
                peak = max(peak, memory_of(process))

        watcher = threading.Thread(target=watch)
        watcher.start()
        counts, times, wrong = asyncio.run(run_clients(url, cases, arguments.clients, arguments.seconds))
        done.set()
        watcher.join()
    growth = (peak - before) / 1e6
    figures = {
        "clients": arguments.clients,
        "answers": dict(counts),
        "latency_ms": milliseconds(times),
        "memory_growth_mb": round(growth, 1),
    }
    problems = list(dict.fromkeys(wrong)) + [f"status {s}" for s in counts if s not in (200, 429)]
    problems += ["no request was refused"] if not counts[429] else []
    return figures, problems + (["memory grew by more than 100 MB"] if growth > 100 else [])


def faults(arguments: argparse.Namespace, reranker: Reranker) -> tuple[dict[str, Any], list[str]]:
    """Hostile clients beside good ones, who must not notice."""
    cases = make_cases(reranker, 16, 8, 20, seed=4)
    seen: Counter[str] = Counter()
    problems: list[str] = []
    with serving(arguments.model) as (process, url):
        asyncio.run(run_clients(url, cases, 4, 1))
        before = memory_of(process)

        async def everybody() -> tuple[Counter[int], list[float], list[str]]:
            until = time.monotonic() + arguments.seconds / 2

            async def hostile(name: str, attack: Callable[[str], Any], expected: set[int]) -> None:
                while time.monotonic() < until:
                    status = await attack(url)
                    seen[f"{name}: {status}"] += 1
                    if status not in expected:
                        problems.append(f"{name} was answered with {status}")

            good = run_clients(url, cases, 4, arguments.seconds / 2)
            attacks = [hostile(name, attack, expected) for name, (attack, expected) in ATTACKS.items()]
            return (await asyncio.gather(good, *attacks))[0]

        counts, times, wrong = asyncio.run(everybody())
        growth = (memory_of(process) - before) / 1e6
        figures = {
            "attacks": dict(sorted(seen.items())),
            "good_answers": dict(counts),
            "latency_ms": milliseconds(times),
            "memory_growth_mb": round(growth, 1),
        }
    problems += wrong + [f"a good client got status {s}" for s in counts if s != 200]
    return figures, list(dict.fromkeys(problems)) + (["memory grew by more than 100 MB"] if growth > 100 else [])


async def send_raw(url: str, head: str, pieces: Iterator[bytes], pause: float = 0, read: bool = True) -> int | None:
    """Send a request by hand; its status, or None where none came or nobody waited for it."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    status = None
    # The answer may come long before everything is sent.
    answer = asyncio.ensure_future(reader.readline())
    try:
        writer.write(f"POST /v2/rerank HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n{head}".encode())
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)
            if reader.at_eof() or writer.is_closing():
                break
    except ConnectionError:
        pass
    if read:
        with contextlib.suppress(ConnectionError, TimeoutError, IndexError, ValueError):
            status = int((await asyncio.wait_for(answer, 60)).split()[1])
    answer.cancel()
    writer.close()
    return status


def posting(content: bytes) -> Callable[[str], Any]:
    """An attack that is a whole body."""

    async def attack(url: str) -> int:
        async with httpx.AsyncClient(timeout=60) as client:
            return (await client.post(f"{url}/v2/rerank", content=content, headers=JSON)).status_code

    return attack


async def hang_up(url: str) -> int | None:
    """Leave while the request is being ranked."""
    body = json.dumps({"model": "m", "query": "a", "documents": ["a long document " * 30] * 200}).encode()
    status = await send_raw(url, f"content-length: {len(body)}\r\n\r\n", iter([body]), 0.2, read=False)
    await asyncio.sleep(0.2)
    return status


async def leave_early(url: str) -> int | None:
    """Leave in the middle of the body."""
    return await send_raw(url, "content-length: 5000\r\n\r\n", iter([b'{"model"']), 0.05, read=False)


async def send_slowly(url: str) -> int | None:
    """Send a byte now and then; the server has had enough after 30 s, this client after 3."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(send_raw(url, "content-length: 5000\r\n\r\n", iter([b"{"] * 100), 0.5), 3)
    return None


async def send_much(url: str) -> int | None:
    """200 MB of body, with its length told and not."""
    piece = b" " * 1_000_000
    told = random.random() < 0.5
    if told:
        return await send_raw(url, "content-length: 200000000\r\n\r\n", iter([piece] * 200))
    chunk = b"%x\r\n%b\r\n" % (len(piece), piece)
    return await send_raw(url, "transfer-encoding: chunked\r\n\r\n", iter([chunk] * 200))


ATTACKS: dict[str, tuple[Callable[[str], Any], set[int | None]]] = {
    "hangs up while ranked": (hang_up, {None}),
    "leaves in the body": (leave_early, {None}),
    "sends slowly": (send_slowly, {None, 408}),
    "200 MB": (send_much, {413}),
    "broken JSON": (posting(b'{"model": "m", "query":'), {400}),
    "wrong types": (posting(b'{"model": 1, "query": [], "documents": {"a": 2}}'), {400}),
    "100,000 documents": (
        posting(json.dumps({"model": "m", "query": "a", "documents": ["d"] * 100_000}).encode()),
        {400},
    ),
    "deep nesting": (posting(b'{"model": "m", "query": "a", "documents": ' + b"[" * 1_000_000), {400}),
}


def shutdown(arguments: argparse.Namespace, reranker: Reranker) -> tuple[dict[str, Any], list[str]]:
    """SIGTERM while 40 requests are in flight: each must be answered, then the process ends with code 0."""
    case = make_cases(reranker, 1, 30, 60, seed=5)[0]
    figures: dict[str, Any] = {}
    problems: list[str] = []
    for workers in ("1", "2"):
        with serving(arguments.model, "--workers", workers) as (process, url):
            answers: list[httpx.Response] = []
            post = lambda url=url, answers=answers: answers.append(  # noqa: E731
                httpx.post(f"{url}/v2/rerank", json=case.body, timeout=120)
            )
            threads = [threading.Thread(target=post) for _ in range(40)]
            for thread in threads:
                thread.start()
            while in_flight(url) + len(answers) < 40:
                time.sleep(0.05)
            early = len(answers)
            process.send_signal(signal.SIGTERM)
            started = time.monotonic()
            for thread in threads:
                thread.join()
            code = process.wait(60)
            figures[f"{workers} workers"] = {
                "answered before": early,
                "answered after": len(answers) - early,
                "seconds": round(time.monotonic() - started, 2),
                "exit code": code,
            }
            if len(answers) != 40 or any(a.status_code != 200 or case.wrong(a) for a in answers) or code:
                problems.append(f"{workers} workers: an accepted request was lost")
    return figures, problems


def in_flight(url: str) -> float:
    """Requests that the server has accepted and not answered."""
    lines = httpx.get(f"{url}/metrics", timeout=60).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("inranker_queue_places "))


def killed(arguments: argparse.Namespace, reranker: Reranker) -> tuple[dict[str, Any], list[str]]:
    """One of two workers is killed under load: the others' requests go on, a new one comes."""
    cases = make_cases(reranker, 16, 8, 20, seed=6)
    with serving(arguments.model, "--workers", "2") as (process, url):

        def workers() -> set[int]:
            found = set()
            for child in psutil.Process(process.pid).children():
                with contextlib.suppress(psutil.NoSuchProcess):  # so is one that ended and was not waited for yet
                    if "spawn_main" in " ".join(child.cmdline()):
                        found.add(child.pid)
            return found

        before = workers()
        outcome: list[Any] = []
        load = threading.Thread(target=lambda: outcome.append(asyncio.run(run_clients(url, cases, 16, 10))))
        load.start()
        time.sleep(2)
        started = time.monotonic()
        os.kill(next(iter(before)), signal.SIGKILL)
        while len(workers()) < 2 or not workers() - before:
            time.sleep(0.02)
        back = time.monotonic() - started
        load.join()
        counts, _, wrong = outcome[0]
        missing = [w for w in wrong if w.startswith("no answer")]
        with httpx.Client(base_url=url, timeout=60) as client:
            alive = all(not cases[0].wrong(client.post("/v2/rerank", json=cases[0].body)) for _ in range(20))
    figures = {"restarted_after_s": round(back, 2), "answers": dict(counts), "lost_with_the_worker": len(missing)}
    problems = [w for w in wrong if not w.startswith("no answer")] + (
        [] if alive else ["the server is not itself again"]
    )
    return figures, problems + (["more was lost than the dead worker had"] if len(missing) > 16 else [])


SCENARIOS = {f.__name__: f for f in (latency, throughput, overload, faults, shutdown, killed)}


def main() -> None:
    """Run the scenarios that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", help=f"of {', '.join(SCENARIOS)}; none: all")
    parser.add_argument("--model", default="inranker-mini", help="as in `inranker serve`")
    parser.add_argument("--seconds", type=float, default=60, help="length of the overload; the others are shorter")
    parser.add_argument("--clients", type=int, default=200, help="clients of the overload")
    arguments = parser.parse_args()
    failed = False
    with Reranker.load(arguments.model) as reranker:
        for name in arguments.scenarios or SCENARIOS:
            figures, problems = SCENARIOS[name](arguments, reranker)
            failed = failed or bool(problems)
            print(json.dumps({"scenario": name, **figures, "problems": problems}), flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
