"""InRanker 2: turn a large neural ranker into a small one that is good on your own documents, and run it anywhere."""

from typing import TYPE_CHECKING, Any

__version__ = "2.0.0.dev0"

if TYPE_CHECKING:
    from inranker.compat import InRankerTrainer, T5Ranker
    from inranker.rank.reranker import Reranker
    from inranker.types import Ranked

__all__ = ["InRankerTrainer", "Ranked", "Reranker", "T5Ranker", "__version__"]

_LAZY = {
    "InRankerTrainer": "inranker.compat",
    "Ranked": "inranker.types",
    "Reranker": "inranker.rank.reranker",
    "T5Ranker": "inranker.compat",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when first used: `import inranker` costs next to nothing."""
    if name not in _LAZY:
        raise AttributeError(f"module 'inranker' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)
