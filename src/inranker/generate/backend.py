"""What every query writer offers, whatever runs the language model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from inranker.generate.prompts import Prompt
from inranker.recipe import GenerateSettings
from inranker.registry import Registry


class Completion(NamedTuple):
    """What a model wrote, up to a stop string, and the mean log-probability (nats) of its tokens.

    The log-probability is NaN where a server does not tell.
    """

    text: str
    log_probability: float


class Request(NamedTuple):
    """One query to write: its id, which also keys its random numbers, and the document's content on one line."""

    id: str
    document: str


class Backend(Protocol):
    """Runs a language model. The model is loaded at the first completion, not before."""

    @property
    def fingerprint(self) -> str:
        """Hash of the model's weights, or the best name there is for them."""
        ...

    def complete(self, prompt: Prompt, requests: Sequence[Request]) -> list[Completion]:
        """One completion a request, in order. The result of a request does not depend on the others."""
        ...


# name -> constructor from (settings, seed, the stage's folder)
backends: Registry[Callable[[GenerateSettings, int, Path], Backend]] = Registry("generation back-end")


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop string."""
    return text[: min((at for at in map(text.find, stop) if at >= 0), default=len(text))]
