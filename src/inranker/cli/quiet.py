"""Libraries that chatter while they work are kept quiet, so that the command line's own words can be read."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator

from inranker.errors import InputWarning

_CHATTY = ("transformers", "torch", "bm25s", "huggingface_hub", "accelerate", "peft")


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Only errors of other libraries, and this package's own warnings, reach the user."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    with contextlib.suppress(ImportError):
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", InputWarning)
        yield
