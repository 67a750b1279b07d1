"""The OpenAPI document is what the server does: schemathesis looks for an answer that is not in it."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from inranker.serve.app import AppSettings, build_app
from serve_helpers import application, live, one_collection, ranking_service

# That as many queries as documents must be given is beyond what a schema can say: refusing valid data is right there.
RUNS = [["--exclude-path=/score"], ["--include-path=/score", "--exclude-checks=positive_data_acceptance"]]


@pytest.mark.parametrize("selection", RUNS, ids=["others", "score"])
@pytest.mark.parametrize("key", [None, "k"])
def test_every_answer_is_documented(selection, key, tmp_path):
    student = ranking_service()
    with live(build_app(student, AppSettings(api_key=key), search=one_collection(student))) as url:
        command = [
            Path(sys.executable).with_name("schemathesis"),
            "run",
            f"{url}/openapi.json",
            "--checks=all",
            "--max-examples=30",
            "--generation-deterministic",
            "--no-color",
            "--continue-on-failure",
            "--suppress-health-check=all",
            *selection,
            *(["--header", f"Authorization: Bearer {key}"] if key else []),
        ]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-5000:]


def test_the_document_names_the_key_only_where_it_is_asked_for():
    for key in (None, "k"):
        with live(application(settings=AppSettings(api_key=key))) as url:
            paths = httpx.get(f"{url}/openapi.json").json()["paths"]
        secured = {path for path, item in paths.items() if "security" in next(iter(item.values()))}
        assert secured == ({"/v2/rerank", "/v1/rerank", "/rerank", "/score", "/search"} if key else set())
