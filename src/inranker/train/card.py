"""The model card of a student: what it is, how it came to be, how to use it, with this package and without."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from inranker.sequence import ModelSettings
from inranker.store import atomic_write

if TYPE_CHECKING:
    from inranker.train.stage import PhaseResult

_PLACE = "path/to/this-model"
_CARD = """---
library_name: transformers
pipeline_tag: text-ranking
tags:
- reranker
- knowledge-distillation
- inranker
---

# {title}

A reranker: it gives a query and a document one number, larger for a more relevant document. It was distilled from a
larger ranker with InRanker 2 ([method](https://arxiv.org/abs/2401.06910)), starting from `{start}`.

| phase | agreement with the teacher before | after | kept |
|---|---|---|---|
{phases}

Agreement is the mean Kendall tau-b over queries held out of training.

## Use

With InRanker 2, from a local copy of this folder:

```python
from inranker import Reranker

ranker = Reranker.load("{folder}")
for result in ranker.rank("what do sponges eat?", ["Sponges filter bacteria from water.", "Paris is in France."]):
    print(result.index, result.score)
```

{transformers}

Sequences have up to {max_length} tokens.{calibration} The settings are under the key `inranker` of `config.json`.
"""

_T5 = """With transformers alone (the logits of two words at the first decoder step):

```python
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

model = AutoModelForSeq2SeqLM.from_pretrained("{folder}").eval()
tokenizer = AutoTokenizer.from_pretrained("{folder}")
query, document = "what do sponges eat?", "Sponges filter bacteria from water."
inputs = tokenizer(f"{prompt}", return_tensors="pt")
start = torch.tensor([[model.config.decoder_start_token_id]])
with torch.no_grad():
    logits = model(**inputs, decoder_input_ids=start).logits[0, 0]
margin = (logits[{true}] - logits[{false}]).item()
```

A long document is cut so that the prompt's last word and the end of the sequence stay."""

_ENCODER = """With transformers alone:

```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("{folder}").eval()
tokenizer = AutoTokenizer.from_pretrained("{folder}")
query, document = "what do sponges eat?", "Sponges filter bacteria from water."
inputs = tokenizer(query, document, truncation="only_second", max_length={max_length}, return_tensors="pt")
with torch.no_grad():
    margin = model(**inputs).logits[0, 0].item()
```"""


def write_card(folder: str | Path, start: str, phases: Sequence[PhaseResult]) -> None:
    """Write `README.md` into a student's folder, which must hold its configuration and tokenizer."""
    folder = Path(folder)
    settings = ModelSettings.read(folder) or ModelSettings()
    rows = [
        f"| {p.name} | {p.agreement_before:.3f} | {p.agreement_after:.3f} | {'yes' if p.kept else 'no'} |"
        for p in phases
    ]
    calibration = ""
    if settings.calibration is not None:
        scale, offset = settings.calibration
        calibration = f" A calibrated probability is sigmoid({scale:.4g} * margin {offset:+.4g})."
    # The card will be read elsewhere: no path of this machine goes into it.
    names = {"folder": _PLACE, "max_length": settings.max_length}
    if settings.architecture == "t5":
        usage = _T5.format(
            **names, prompt=_prompt(folder, settings), true=settings.true_token, false=settings.false_token
        )
    else:
        usage = _ENCODER.format(**names)
    card = _CARD.format(
        **names,
        title=f"{settings.architecture} reranker" if settings.architecture != "t5" else "monoT5 reranker",
        start=Path(start).name if Path(start).is_dir() else start,
        phases="\n".join(rows) or "| none | | | |",
        transformers=usage,
        calibration=calibration,
    )
    with atomic_write(folder / "README.md") as file:
        file.write(card)


def _prompt(folder: Path, settings: ModelSettings) -> str:
    from inranker.sequence_t5 import find_wording
    from inranker.store import read_json
    from inranker.t5.model import load_tokenizer

    words = find_wording(load_tokenizer(folder), read_json(folder / "config.json")["model_type"], settings)
    return f"{words.query} {{query}} {words.document} {{document}} {words.closing}"
