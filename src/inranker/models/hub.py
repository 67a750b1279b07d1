"""Models of the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path

from inranker.errors import ModelError, require
from inranker.models.cache import cache_folder, room_for

_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
# Weights in forms that nothing here reads.
_UNREAD = ["*.h5", "*.msgpack", "*.ot", "*.tflite", "*.pt", "*.pth", "openvino/*", "onnx/*_*.onnx", "coreml/*"]


def is_hub_id(name: str) -> bool:
    """Whether a name has the form `owner/model`, or `owner/model@revision`."""
    return _ID.fullmatch(name) is not None


def pull_hub(name: str) -> Path:
    """The local folder of a Hub model, downloaded where needed into the Hub's own cache; HF_HUB_OFFLINE is honoured.

    Raises:
        MissingExtra: huggingface_hub is not installed.
        ModelError: there is no such model, or the Hub cannot be reached and the model is not in its cache.
    """
    hub = require("huggingface_hub", "hub")
    errors = require("huggingface_hub.errors", "hub")
    model, _, revision = name.partition("@")
    # The room is the Hub cache's; only the reasons for a failure to write are of use here.
    try:
        with room_for(cache_folder(), 0):
            return Path(hub.snapshot_download(model, revision=revision or None, ignore_patterns=_UNREAD))
    except errors.RepositoryNotFoundError:
        raise ModelError(f"{name}: no such model on the Hugging Face Hub, or it is private; check the name") from None
    except errors.RevisionNotFoundError:
        raise ModelError(f"{name}: the model has no revision {revision!r}") from None
    except errors.LocalEntryNotFoundError:
        raise ModelError(
            f"{name}: not in the local Hub cache, and the Hugging Face Hub cannot be reached; download the model "
            "elsewhere and give its folder's path in place of the name"
        ) from None
    except errors.HfHubHTTPError as error:
        raise ModelError(f"{name}: the Hugging Face Hub answered: {str(error).splitlines()[0]}") from None
