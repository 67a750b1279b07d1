"""Causal language models as teachers: two answer words' logits under a template, or the likelihood of the query."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inranker.errors import ModelError
from inranker.label.teachers import TEACHERS, TorchTeacher, pad_right, pick_dtype, weights_fingerprint
from inranker.models import resolve
from inranker.recipe import TeacherSettings
from inranker.sequence_causal import DEFAULT_TEMPLATE, CausalSequences, single_token
from inranker.store import read_json, write_json
from inranker.types import Logits, Pair

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


@dataclass(frozen=True, slots=True)
class CausalSequence:
    """Token ids of which the states of the last `wanted` (at least one) matter; those of one `group` begin alike."""

    ids: list[int]
    group: str
    wanted: int = 1

    def __len__(self) -> int:
        return len(self.ids)


class CausalStates(TorchTeacher):
    """A teacher that reads a causal model's states of the last tokens of each sequence.

    Sequences go through packed, without padding and with what a query's documents share computed once a row, where the
    model and the machine allow (`packed_causal.packable`). Elsewhere batches are padded on the right: under a causal
    mask no token sees the padding behind it. Either way a score does not depend on its batch mates, and labels differ
    by rounding alone, so the fingerprint knows of neither.

    Args:
        name: of the teacher.
        settings: model, adapter, precision, lengths.
        template: with {query} and {document}.
        identity: what else can change a logit.
        packed: False pads whatever the model.
        compiled: compile the packed layers (see `PackedDecoder`); None: on a GPU, once much has been scored.
    """

    def __init__(
        self,
        name: str,
        settings: TeacherSettings,
        template: str,
        identity: dict[str, Any],
        packed: bool,
        compiled: bool | None,
    ) -> None:
        from inranker.label.packed_causal import COMPILE_AFTER, PackedDecoder, packable

        known = {
            "weights": weights_fingerprint(resolve(settings.model)),
            "adapter": weights_fingerprint(settings.adapter) if settings.adapter else None,
            "template": template,
        }
        super().__init__(name, settings, known | identity)
        self.model, self._tokenizer = load_causal(
            settings.model, pick_dtype(settings.dtype, self.device), settings.adapter
        )
        self._sequences = CausalSequences(self._tokenizer, template, settings.max_length)
        # Pairs that agree in the template's first field begin alike.
        self._first = "query" if template.index("{query}") < template.index("{document}") else "document"
        self._packed = None
        if packed and packable(self.model, settings.max_length):
            later = COMPILE_AFTER if self.device.type == "cuda" else None
            self._packed = PackedDecoder(self.model, later if compiled is None else 0 if compiled else None)

    @abstractmethod
    def from_states(self, states: torch.Tensor, batch: list[CausalSequence]) -> torch.Tensor:
        """Logits float32 [n, 2] from the wanted states [wanted, size] of the sequences, one after the other."""

    def forward(self, batch: list[CausalSequence]) -> torch.Tensor:
        """Logits of a padded batch."""
        ids, _ = pad_right([s.ids for s in batch], 0, self.device)
        hidden = self.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        ends = [n * ids.shape[1] + len(s) for n, s in enumerate(batch)]
        wanted = [np.arange(end - s.wanted, end) for end, s in zip(ends, batch, strict=True)]
        return self.from_states(hidden.flatten(0, 1)[self._tensor(wanted)], batch)

    def logits(self, pairs: Sequence[Pair]) -> Logits:
        """Raw logits, float32 [n, 2], in the order of `pairs`."""
        import torch

        if self._packed is None:
            return super().logits(pairs)
        sequences = self.sequences(pairs)
        out = np.empty((len(pairs), 2), dtype=np.float32)
        with torch.inference_mode():
            # Results stay on the device until the end: waiting for each row would leave the GPU idle.
            pending = [
                (places, self.from_states(states, [sequences[i] for i in places]))
                for places, states in self._packed.states(sequences, self.batch_tokens)
            ]
        for places, logits in pending:
            out[places] = logits.float().cpu().numpy()
        return out

    def _tensor(self, parts: Sequence[Any]) -> torch.Tensor:
        from inranker.label.packed_causal import to_device

        return to_device(self.device, np.concatenate([np.asarray(part, dtype=np.int64) for part in parts]))

    def _group(self, pair: Pair) -> str:
        return pair.query if self._first == "query" else pair.document


class CausalTeacher(CausalStates):
    """Logits of two answer words after `template` (default: what it was fine-tuned with, else ours).

    Of the output head only two rows are computed, in fp32, and only for each sequence's last token.
    """

    def __init__(self, settings: TeacherSettings, packed: bool = True, compiled: bool | None = None) -> None:
        folder = Path(settings.adapter or resolve(settings.model))
        kept = read_json(folder / TEACHER_FILE) if (folder / TEACHER_FILE).is_file() else {}
        template = settings.template or kept.get("template", DEFAULT_TEMPLATE)
        answers = tuple(kept.get("answers", ANSWERS))
        super().__init__(
            f"causal:{settings.model}", settings, template, {"answers": answers}, packed=packed, compiled=compiled
        )
        rows = [single_token(self._tokenizer, word) for word in answers]
        self._head = self.model.get_output_embeddings().weight[rows].float()

    def sequences(self, pairs: Sequence[Pair]) -> list[CausalSequence]:
        """The template filled in."""
        built = self._sequences.pairs(pairs)
        return [CausalSequence(ids, self._group(pair)) for ids, pair in zip(built, pairs, strict=True)]

    def from_states(self, states: torch.Tensor, batch: list[CausalSequence]) -> torch.Tensor:
        """Two answer logits a sequence."""
        return states.float() @ self._head.T


class QueryLikelihoodTeacher(CausalStates):
    """Mean log-probability (nats) of the query's tokens given the document, for users without any labels.

    The margin is that mean; it is given as (-x / 2, +x / 2). Ponte and Croft's query likelihood, with a language model
    in place of the smoothed document model (UPR: Sachan et al. 2022, arXiv 2204.07496).
    """

    TEMPLATE = "Document: {document}\nA search query that this document answers: {query}"

    def __init__(self, settings: TeacherSettings, packed: bool = True, compiled: bool | None = None) -> None:
        template = settings.template or self.TEMPLATE
        super().__init__(f"query-likelihood:{settings.model}", settings, template, {}, packed=packed, compiled=compiled)

    def sequences(self, pairs: Sequence[Pair]) -> list[CausalSequence]:
        """The template filled in; wanted are the query's tokens, which end it, and the one before them."""
        queries = self._sequences.encode_fields("query", [q for q, _ in pairs])
        limit = self._sequences.max_length // 2
        built = self._sequences.pairs(pairs)
        return [
            CausalSequence(ids, self._group(pair), min(len(queries[pair.query]), limit, len(ids) - 1) + 1)
            for ids, pair in zip(built, pairs, strict=True)
        ]

    def from_states(self, states: torch.Tensor, batch: list[CausalSequence]) -> torch.Tensor:
        """Halves of the mean log-probability, negative and positive."""
        import torch

        # A sequence's states predict its last tokens, but for the very last state, which predicts what is no more.
        counts = np.array([s.wanted - 1 for s in batch])
        predicts = self._tensor([np.delete(np.arange(len(states)), np.cumsum(counts + 1) - 1)])
        targets = self._tensor([s.ids[len(s) - s.wanted + 1 :] for s in batch])
        owner = self._tensor([np.repeat(np.arange(len(batch)), counts)])
        total = torch.zeros(len(batch), device=self.device)
        head = self.model.get_output_embeddings()
        # The head's rows are many: not all tokens at once.
        for part, target, row in zip(predicts.split(4096), targets.split(4096), owner.split(4096), strict=True):
            logits = head(states[part]).float()
            total.index_add_(0, row, -torch.nn.functional.cross_entropy(logits, target, reduction="none"))
        half = total / self._tensor([counts.clip(1)]) / 2
        return torch.stack([-half, half], dim=1)


def write_teacher_file(folder: str | Path, template: str, answers: Sequence[str] = ANSWERS) -> None:
    """Keep beside a fine-tuned teacher what it must be asked with."""
    write_json(Path(folder) / TEACHER_FILE, {"template": template, "answers": list(answers)})


TEACHERS.register("causal")(CausalTeacher)
TEACHERS.register("query-likelihood")(QueryLikelihoodTeacher)
