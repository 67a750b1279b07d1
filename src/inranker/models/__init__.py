"""Names of models to local folders."""

from inranker.models.cache import cache_folder
from inranker.models.catalog import KNOWN
from inranker.models.gguf import transformers_folder
from inranker.models.resolve import ModelStatus, fingerprint, list_models, pull, resolve, verify

__all__ = [
    "KNOWN",
    "ModelStatus",
    "cache_folder",
    "fingerprint",
    "list_models",
    "pull",
    "resolve",
    "transformers_folder",
    "verify",
]
