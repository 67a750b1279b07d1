"""Causal language models as teachers: two answer words' logits under a template, or the likelihood of the query."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inranker.errors import ModelError
from inranker.label.teachers import TEACHERS, TorchTeacher, pad_right, pick_dtype, weights_fingerprint
from inranker.models import resolve
from inranker.recipe import TeacherSettings
from inranker.sequence_causal import DEFAULT_TEMPLATE, CausalSequences, single_token
from inranker.store import read_json, write_json
from inranker.types import Pair

if TYPE_CHECKING:
    import torch

# What a fine-tuned teacher was trained with, kept beside its weights or its adapter.
TEACHER_FILE = "teacher.json"
ANSWERS = (" false", " true")


def load_causal(name: str, dtype: torch.dtype, adapter: str | None = None) -> tuple[Any, Any]:
    """A causal model on its device, adapter merged in, and its tokenizer.

    Raises:
        ModelError: the folder holds no causal language model, or the adapter does not fit it.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from inranker.label.teachers import pick_device
    from inranker.models import transformers_folder

    folder = transformers_folder(resolve(name))
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ModelError(f"{name}: no causal language model: {str(error).splitlines()[0]}") from None
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return model.to(pick_device()).eval(), tokenizer


class CausalTeacher(TorchTeacher):
    """Logits of two answer words after `template` (default: what it was fine-tuned with, else ours).

    Batches are padded on the right: under a causal mask no token sees the padding behind it, so a score does not depend
    on its batch mates and the fast attention kernels need no mask. Of the output head only two rows are computed, in
    fp32.
    """

    def __init__(self, settings: TeacherSettings) -> None:
        folder = Path(settings.adapter or resolve(settings.model))
        kept = read_json(folder / TEACHER_FILE) if (folder / TEACHER_FILE).is_file() else {}
        template = settings.template or kept.get("template", DEFAULT_TEMPLATE)
        answers = tuple(kept.get("answers", ANSWERS))
        identity = {
            "weights": weights_fingerprint(resolve(settings.model)),
            "adapter": weights_fingerprint(settings.adapter) if settings.adapter else None,
            "template": template,
            "answers": answers,
        }
        super().__init__(f"causal:{settings.model}", settings, identity)
        self.model, tokenizer = load_causal(settings.model, pick_dtype(settings.dtype, self.device), settings.adapter)
        self._sequences = CausalSequences(tokenizer, template, settings.max_length)
        rows = [single_token(tokenizer, word) for word in answers]
        self._head = self.model.get_output_embeddings().weight[rows].float()

    def sequences(self, pairs: Sequence[Pair]) -> list[list[int]]:
        """The template filled in."""
        return self._sequences.pairs(pairs)

    def forward(self, batch: list[list[int]]) -> torch.Tensor:
        """Two answer logits a sequence."""
        import torch

        ids, lengths = pad_right(batch, 0, self.device)
        hidden = self.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(batch), device=self.device), lengths - 1]
        return last.float() @ self._head.T


class QueryLikelihoodTeacher(TorchTeacher):
    """Mean log-probability (nats) of the query's tokens given the document, for users without any labels.

    The margin is that mean; it is given as (-x / 2, +x / 2). Ponte and Croft's query likelihood, with a language model
    in place of the smoothed document model (UPR: Sachan et al. 2022, arXiv 2204.07496).
    """

    TEMPLATE = "Document: {document}\nA search query that this document answers: {query}"

    def __init__(self, settings: TeacherSettings) -> None:
        template = settings.template or self.TEMPLATE
        identity = {
            "weights": weights_fingerprint(resolve(settings.model)),
            "adapter": weights_fingerprint(settings.adapter) if settings.adapter else None,
            "template": template,
        }
        super().__init__(f"query-likelihood:{settings.model}", settings, identity)
        self.model, tokenizer = load_causal(settings.model, pick_dtype(settings.dtype, self.device), settings.adapter)
        self._sequences = CausalSequences(tokenizer, template, settings.max_length)

    def sequences(self, pairs: Sequence[Pair]) -> list[_QuerySequence]:
        """The template filled in, and how many tokens at its end are the query's."""
        queries = self._sequences.encode_fields("query", [q for q, _ in pairs])
        built = self._sequences.pairs(pairs)
        limit = self._sequences.max_length // 2
        return [_QuerySequence(ids, min(len(queries[q]), limit)) for ids, (q, _) in zip(built, pairs, strict=True)]

    def forward(self, batch: list[_QuerySequence]) -> torch.Tensor:
        """Halves of the mean log-probability, negative and positive."""
        import torch

        ids, lengths = pad_right([s.ids for s in batch], 0, self.device)
        counts = torch.tensor([s.query_tokens for s in batch], device=self.device)
        hidden = self.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        # Only positions that predict a query token go through the head: its rows are many, the query's tokens few.
        position = torch.arange(ids.shape[1], device=self.device)
        predicts = (position >= (lengths - counts - 1)[:, None]) & (position < (lengths - 1)[:, None])
        row, column = predicts.nonzero(as_tuple=True)
        total = torch.zeros(len(batch), device=self.device)
        head = self.model.get_output_embeddings()
        for part_row, part_column in zip(row.split(4096), column.split(4096), strict=True):
            logits = head(hidden[part_row, part_column]).float()
            target = ids[part_row, part_column + 1]
            total.index_add_(0, part_row, -torch.nn.functional.cross_entropy(logits, target, reduction="none"))
        half = total / counts.clamp(min=1) / 2
        return torch.stack([-half, half], dim=1)


class _QuerySequence:
    """Token ids whose last `query_tokens` are the query's."""

    def __init__(self, ids: list[int], query_tokens: int) -> None:
        self.ids, self.query_tokens = ids, query_tokens

    def __len__(self) -> int:
        return len(self.ids)


def write_teacher_file(folder: str | Path, template: str, answers: Sequence[str] = ANSWERS) -> None:
    """Keep beside a fine-tuned teacher what it must be asked with."""
    write_json(Path(folder) / TEACHER_FILE, {"template": template, "answers": list(answers)})


TEACHERS.register("causal")(CausalTeacher)
TEACHERS.register("query-likelihood")(QueryLikelihoodTeacher)
