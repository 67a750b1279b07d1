"""The server as a process: start, stop, workers that die, mistakes on the command line."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest

COMMAND = [
    str(Path(sys.executable).with_name("inranker")),
    "serve",
    "--no-page",
    "--no-log-requests",
    "--backend",
    "onnx",
]
SHORT = {"model": "m", "query": "kaban", "documents": ["kaban lodel", "lodel"]}
LONG = {"model": "m", "query": "kaban", "documents": ["kaban lodel mifir " * 40] * 250}


@pytest.fixture(scope="module")
def model(tiny_encoder, tmp_path_factory):
    """The tiny encoder as ONNX, which loads fast."""
    from inranker.export import export_model

    folder = tmp_path_factory.mktemp("served") / "tiny-onnx"
    export_model(tiny_encoder, folder, int8=False)
    return folder


@contextlib.contextmanager
def serving(model, *options):
    """A server process and its address; it is killed with its children in the end."""
    command = [*COMMAND, "--model", str(model), "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    lines = []
    try:
        while "serving at" not in (line := process.stderr.readline()):
            assert line, "".join(lines)
            lines.append(line)
        reader = threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True)
        reader.start()
        yield process, line.split()[-1], lines
    finally:
        family = [process, *psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait(20)


def workers_of(process):
    """The processes that rank: children that are not helpers of multiprocessing."""
    found = []
    for child in psutil.Process(process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # so is one that ended and was not waited for yet
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


def eventually(check, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def in_flight(url):
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("inranker_queue_places "))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_under_load_loses_no_accepted_request(model, workers):
    with serving(model, "--workers", workers, "--threads", "1") as (process, url, _):
        answers = []

        def ask():
            answers.append(httpx.post(f"{url}/v2/rerank", json=LONG, timeout=60))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        eventually(lambda: in_flight(url) + len(answers) == 8)
        assert len(answers) < 8
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert [a.status_code for a in answers] == [200] * 8
        assert all(len(a.json()["results"]) == 250 for a in answers)
        assert process.wait(20) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")


def test_a_killed_worker_comes_back(model):
    with serving(model, "--workers", "2") as (process, url, lines):
        before = workers_of(process)
        assert len(before) == 2
        victim = before[0]
        victim.kill()
        # The other one goes on ranking meanwhile, and connections wait on the shared socket.
        for _ in range(10):
            assert httpx.post(f"{url}/v2/rerank", json=SHORT, timeout=20).status_code == 200
        eventually(lambda: len({w.pid for w in workers_of(process)} - {victim.pid}) == 2)
        eventually(lambda: any("starting another" in line for line in lines))
        with httpx.Client(base_url=url) as client:
            assert client.post("/v2/rerank", json=SHORT).status_code == 200
        # Metrics are those of all workers, the dead one's included.
        answered = [line for line in httpx.get(f"{url}/metrics").text.splitlines() if '"/v2/rerank"' in line]
        assert any(line.endswith(" 11.0") for line in answered)
        process.terminate()
        assert process.wait(20) == 0
        assert not any("Traceback" in line for line in lines)


def test_workers_do_not_outlive_their_supervisor(model):
    with serving(model, "--workers", "2") as (process, _, _):
        workers = workers_of(process)
        process.kill()
        process.wait(20)
        eventually(lambda: not any(w.is_running() and w.status() != psutil.STATUS_ZOMBIE for w in workers))


def test_the_socket_is_local_and_the_key_may_come_from_the_environment(model):
    command = [*COMMAND, "--model", str(model), "--port", "0"]
    environment = os.environ | {"INRANKER_API_KEY": "sesame"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        url = process.stderr.readline().split()[-1]
        assert url.startswith("http://127.0.0.1:")
        assert httpx.post(f"{url}/v2/rerank", json=SHORT).status_code == 401
        key = {"authorization": "Bearer sesame"}
        assert httpx.post(f"{url}/v2/rerank", json=SHORT, headers=key).status_code == 200
    finally:
        process.terminate()
        assert process.wait(20) == 0


def failing(*options):
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_mistakes_are_one_line(model, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"port {port}: Address already in use" in failing("--model", str(model), "--port", port)
    (tmp_path / "broken").mkdir()
    assert "config.json" in failing("--model", str(tmp_path / "broken"), "--port", "0")
    assert "config.json" in failing("--model", str(tmp_path / "broken"), "--port", "0", "--workers", "2")
    (tmp_path / "documents.jsonl").write_text(json.dumps({"_id": "1", "text": "a"}) + "\n{\n")
    collection = ["--page", "--collection", str(tmp_path / "documents.jsonl")]
    assert "documents.jsonl:2" in failing("--model", str(model), "--port", "0", *collection)
    assert "leave out --collection" in failing("--run", str(tmp_path), "--collection", "x")


def test_everybody_is_warned_of_an_open_server(model):
    with serving(model, "--host", "0.0.0.0") as (_, url, lines):
        assert "everybody who reaches 0.0.0.0 can use this server" in lines[0]
        assert httpx.get(url.replace("0.0.0.0", "127.0.0.1") + "/health").status_code == 200
