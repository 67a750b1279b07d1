"""The HTTP back-end: any server that speaks OpenAI's API, hosted or one's own.

What was paid for is kept: every answer goes into `api-answers.jsonl` in the stage's folder before anything else
happens, and is never asked for again. The key is read from the environment, sent in one header, and written nowhere.
"""

from __future__ import annotations

import json
import math
import os
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from inranker.errors import InputError, ModelError, require
from inranker.generate.backend import Completion, Request, backends, cut_at_stop
from inranker.generate.prompts import Prompt
from inranker.generate.sampling import keyed_hash
from inranker.recipe import GenerateSettings
from inranker.store import fingerprint

ANSWERS = "api-answers.jsonl"

# Characters a token, on the low side: what a request may cost is estimated with it, and must not come out too low.
_CHARACTERS_A_TOKEN = 3
_CHARACTERS_A_DOCUMENT_TOKEN = 4
_WORKERS = 8
_TIMEOUT_SECONDS = 120.0
_LONGEST_WAIT_SECONDS = 120.0
_ASK = (
    "Complete the last example of the text below in the manner of the ones before it. "
    "Answer with the line that is missing and nothing else.\n\n"
)


class _Budget:
    """Money spent, and money that requests under way may still cost."""

    def __init__(self, limit: float | None, spent: float) -> None:
        self.limit = limit
        self.spent = spent
        self._reserved = 0.0
        self._lock = threading.Lock()

    def reserve(self, cost: float) -> bool:
        """Set money aside for a request, unless that could go over the limit."""
        with self._lock:
            if self.limit is not None and self.spent + self._reserved + cost > self.limit:
                return False
            self._reserved += cost
            return True

    def settle(self, reserved: float, cost: float) -> None:
        """Replace what was set aside by what the request did cost."""
        with self._lock:
            self._reserved -= reserved
            self.spent += cost


class _Pace:
    """Lets requests through at most so many a minute, evenly spaced, and not before a server's wish."""

    def __init__(self, per_minute: float) -> None:
        self._interval = 60.0 / per_minute
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + self._interval
        time.sleep(start - now)

    def hold(self, seconds: float) -> None:
        """No request starts within so many seconds."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


@backends.register("openai")
class OpenAIBackend:
    """See the module's text."""

    def __init__(self, settings: GenerateSettings, seed: int, folder: Path) -> None:
        self._httpx = require("httpx", "api")
        self._client = self._httpx.Client(timeout=_TIMEOUT_SECONDS)
        # What a server turned out not to take.
        self._refused: set[str] = set()
        api = settings.api
        address = urlsplit(api.base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise InputError(f"generate.api.base_url: {api.base_url!r} is not an http(s) address")
        if address.username or address.password or address.query:
            raise InputError(
                f"generate.api.base_url must hold no key or password; put the key into ${api.key_variable}"
            )
        self._key = os.environ.get(api.key_variable, "")
        local = address.hostname in ("localhost", "127.0.0.1", "::1")
        if not self._key and not local:
            raise InputError(f"{address.hostname} needs a key: set the environment variable {api.key_variable}")
        self.settings, self.seed = settings, seed
        self._answers_path = folder / ANSWERS
        self._answers = self._read_answers()
        self._budget = _Budget(api.budget, sum(answer["cost"] for answer in self._answers.values()))
        self._pace = _Pace(api.requests_per_minute)
        self._writing = threading.Lock()

    @property
    def fingerprint(self) -> str:
        """Hash of the server's address and the model's name: all that can be known of the weights."""
        return fingerprint("openai", self.settings.api.base_url, self.settings.model)

    def complete(self, prompt: Prompt, requests: Sequence[Request]) -> list[Completion]:
        """One completion a request, in order.

        Raises:
            InputError: the spending cap is reached, or the server refuses the key or the request.
            ModelError: the server does not answer.
        """
        stop = threading.Event()

        def one(request: Request) -> Completion:
            if stop.is_set():
                raise InputError("stopped")
            try:
                return self._complete(prompt, request)
            except BaseException:
                stop.set()
                raise

        # Requests under way are let finish (and are kept) when one fails; none is begun after it.
        with ThreadPoolExecutor(_WORKERS) as pool:
            futures = [pool.submit(one, request) for request in requests]
        failures = [future.exception() for future in futures if future.exception() is not None]
        if failures:
            raise next((failure for failure in failures if str(failure) != "stopped"), failures[0])  # type: ignore[misc]
        return [future.result() for future in futures]

    def _complete(self, prompt: Prompt, request: Request) -> Completion:
        body = self._body(prompt, request)
        name = fingerprint(self.settings.api.base_url, body)
        answer = self._answers.get(name)
        if answer is None:
            api = self.settings.api
            tokens = len(json.dumps(body["messages"])) / _CHARACTERS_A_TOKEN
            worst = (tokens * api.price_input + self.settings.max_new_tokens * api.price_output) / 1e6
            if not self._budget.reserve(worst):
                raise InputError(
                    f"the spending cap of {api.budget:g} is reached ({self._budget.spent:.4g} spent, "
                    f"{len(self._answers)} answers kept); raise generate.api.budget to go on"
                )
            cost = 0.0
            try:
                answer, cost = self._ask(body)
                self._keep(name, answer)
            finally:
                self._budget.settle(worst, cost)
        return Completion(cut_at_stop(answer["text"], prompt.stop), answer["log_probability"])

    def _body(self, prompt: Prompt, request: Request) -> dict[str, Any]:
        settings = self.settings
        document = request.document[: settings.document_tokens * _CHARACTERS_A_DOCUMENT_TOKEN]
        body: dict[str, Any] = {
            "model": settings.model,
            "messages": [{"role": "user", "content": _ASK + prompt.text(document)}],
            "max_tokens": settings.max_new_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "stop": list(prompt.stop),
        }
        if settings.temperature > 0:
            body["seed"] = keyed_hash(self.seed, request.id) >> 33
        return body

    def _ask(self, body: dict[str, Any]) -> tuple[dict[str, Any], float]:
        """Send a request until it is answered; gives the answer and what it cost."""
        api = self.settings.api
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        url = f"{api.base_url.rstrip('/')}/chat/completions"
        host = urlsplit(url).netloc
        for attempt in range(api.retries + 1):
            self._pace.wait()
            try:
                response = self._client.post(url, json=self._accepted(body), headers=headers)
            except self._httpx.TransportError as error:
                trouble = f"{host} does not answer ({type(error).__name__})"
                wait = None
            else:
                if response.status_code == 200:
                    return self._read(response, host)
                trouble = f"{host} answered {response.status_code}: {self._reason(response)}"
                if response.status_code in (401, 403):
                    raise InputError(f"{trouble}; check the key in ${api.key_variable}")
                if response.status_code == 400 and self._learn(trouble):
                    continue
                if response.status_code not in (408, 409, 425, 429) and response.status_code < 500:
                    raise InputError(trouble)
                wait = _retry_after(response.headers.get("Retry-After"))
            if attempt < api.retries:
                # Doubling waits, spread so that the workers do not all come back at once.
                seconds = wait if wait is not None else min(2.0**attempt, 60.0) * random.uniform(0.5, 1.0)
                if wait is not None:
                    self._pace.hold(seconds)
                time.sleep(min(seconds, _LONGEST_WAIT_SECONDS))
        raise ModelError(f"{trouble}, after {api.retries + 1} tries; start again to go on where this stopped")

    def _accepted(self, body: dict[str, Any]) -> dict[str, Any]:
        """The request in the form that this server takes."""
        body = {**body, "logprobs": True}
        if "logprobs" in self._refused:
            del body["logprobs"]
        if "max_completion_tokens" in self._refused:
            body["max_completion_tokens"] = body.pop("max_tokens")
        return body

    def _learn(self, trouble: str) -> bool:
        """Note what a refusal says about the form of requests; tells whether it says anything."""
        named = {name for name in ("logprobs", "max_completion_tokens") if name in trouble}
        self._refused |= named
        return bool(named)

    def _read(self, response: Any, host: str) -> tuple[dict[str, Any], float]:
        api = self.settings.api
        try:
            value = response.json()
            choice = value["choices"][0]
            text = choice["message"]["content"] or ""
            usage = value.get("usage") or {}
            tokens = [int(usage.get(f"{kind}_tokens", 0)) for kind in ("prompt", "completion")]
            listed = ((choice.get("logprobs") or {}).get("content")) or []
            mean = sum(token["logprob"] for token in listed) / len(listed) if listed else math.nan
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise ModelError(f"{host} gave an answer that is no chat completion") from None
        cost = (tokens[0] * api.price_input + tokens[1] * api.price_output) / 1e6
        return {"text": text, "log_probability": mean, "cost": cost}, cost

    def _reason(self, response: Any) -> str:
        """The server's own words, on one line, without the key should it repeat it."""
        try:
            error = response.json()["error"]
            words = error["message"] if isinstance(error, dict) else str(error)
        except (ValueError, KeyError, TypeError):
            words = response.text
        words = " ".join(str(words).split())[:200] or response.reason_phrase
        return words.replace(self._key, "***") if self._key else words

    def _keep(self, name: str, answer: dict[str, Any]) -> None:
        with self._writing:
            self._answers_path.parent.mkdir(parents=True, exist_ok=True)
            with self._answers_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"request": name, **answer}) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self._answers[name] = answer

    def _read_answers(self) -> dict[str, dict[str, Any]]:
        answers = {}
        if self._answers_path.is_file():
            text = self._answers_path.read_text(encoding="utf-8")
            if text and not text.endswith("\n"):
                # A run that was killed left half a line: the next answer must not be written behind it.
                with self._answers_path.open("a", encoding="utf-8") as file:
                    file.write("\n")
            for line in text.splitlines():
                try:
                    answer = json.loads(line)
                    answers[answer.pop("request")] = answer
                except (json.JSONDecodeError, KeyError):
                    continue
        return answers


def _retry_after(value: str | None) -> float | None:
    """Seconds that a server asks to wait: a number, or a date."""
    if not value:
        return None
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError):
        return None
