"""Any sequence classifier with one or two logits as a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from inranker.errors import ModelError
from inranker.label.teachers import TEACHERS, TorchTeacher, halves, pad_right, pick_dtype, weights_fingerprint
from inranker.models import resolve
from inranker.rank.backend import load_backend
from inranker.rank.folder import ModelFolder
from inranker.rank.onnx_file import FILES
from inranker.rank.reranker import Reranker
from inranker.recipe import TeacherSettings
from inranker.sequence import EncoderSequences, ModelSettings, TokenSequence
from inranker.store import fingerprint
from inranker.types import Logits, Pair, Teacher

if TYPE_CHECKING:
    import torch


class _Sequence(list[int]):
    """Token ids that remember their types."""

    types: list[int] | None


class CrossEncoderTeacher(TorchTeacher):
    """A Hugging Face sequence classifier; one logit x gives (-x / 2, +x / 2), two are taken as (false, true)."""

    def __init__(self, settings: TeacherSettings) -> None:
        from tokenizers import Tokenizer
        from transformers import AutoModelForSequenceClassification

        folder = resolve(settings.model)
        super().__init__(f"cross-encoder:{settings.model}", settings, {"weights": weights_fingerprint(folder)})
        try:
            model = AutoModelForSequenceClassification.from_pretrained(
                folder, dtype=pick_dtype(settings.dtype, self.device), attn_implementation="sdpa"
            )
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{settings.model}: no sequence classifier: {str(error).splitlines()[0]}") from None
        if model.config.num_labels not in (1, 2):
            raise ModelError(f"{settings.model}: has {model.config.num_labels} labels; a teacher needs one or two")
        self.model = model.to(self.device).eval()
        kept = ModelSettings.read(folder)
        longest = kept.max_length if kept else getattr(model.config, "max_position_embeddings", settings.max_length)
        self._sequences = EncoderSequences(tokenizer, min(settings.max_length, longest))
        self._has_types = getattr(model.config, "type_vocab_size", 0) > 1

    def sequences(self, pairs: Sequence[Pair]) -> list[_Sequence]:
        """The model's own pair template."""
        return [self._with_types(s) for s in self._sequences.pairs(pairs)]

    @staticmethod
    def _with_types(sequence: TokenSequence) -> _Sequence:
        ids = _Sequence(sequence.input_ids)
        ids.types = sequence.token_type_ids
        return ids

    def forward(self, batch: list[_Sequence]) -> torch.Tensor:
        """Both logits, or the halves of the only one."""
        import torch

        pad = self.model.config.pad_token_id or 0
        ids, lengths = pad_right(batch, pad, self.device)
        inputs = {"input_ids": ids, "attention_mask": _mask(ids, lengths)}
        if self._has_types:
            inputs["token_type_ids"] = pad_right([s.types or [0] * len(s) for s in batch], 0, self.device)[0]
        logits = self.model(**inputs).logits.float()
        return torch.cat([-logits / 2, logits / 2], dim=1) if logits.shape[1] == 1 else logits


def _mask(ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    import torch

    return (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()


def exported_folder(model: str) -> ModelFolder:
    """The folder of an encoder that has an int8 file.

    Raises:
        ModelError: it is another kind of model, or has none.
    """
    folder = ModelFolder.open(resolve(model))
    if folder.settings.architecture != "encoder":
        raise ModelError(f"{model}: no sequence classifier; its kind is seq2seq")
    if not folder.has(FILES["int8"]):
        raise ModelError(f"{model}: has no int8 file: `inranker export` makes it, dtype = auto needs none")
    return folder


class Int8CrossEncoderTeacher:
    """An exported encoder by its int8 file: on a CPU several times as fast as torch in fp32, on a GPU not used.

    The file passed its gate when it was exported: it orders pairs nearly as the weights do.
    """

    def __init__(self, settings: TeacherSettings) -> None:
        folder = exported_folder(settings.model)
        self.name = f"cross-encoder:{settings.model}"
        length = min(settings.max_length, folder.settings.max_length)
        self.fingerprint = fingerprint("cross-encoder", settings.dtype, length, weights_fingerprint(folder.path))
        backend = load_backend(folder, precision="int8", device="cpu")
        self._ranker = Reranker(folder, EncoderSequences(folder.tokenizer(), length), backend)

    def logits(self, pairs: Sequence[Pair]) -> Logits:
        """Halves of the margins, float32 [n, 2]."""
        return halves(self._ranker.scores(pairs))


@TEACHERS.register("cross-encoder")
def _load(settings: TeacherSettings) -> Teacher:
    return Int8CrossEncoderTeacher(settings) if settings.by_int8_file else CrossEncoderTeacher(settings)
