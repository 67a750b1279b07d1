"""A bi-encoder's similarity as a teacher: cheap, and a second opinion inside an ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from inranker.batching import plan_batches
from inranker.errors import ModelError
from inranker.label.cross_encoder import _mask
from inranker.label.teachers import TEACHERS, halves, pad_right, pick_device, pick_dtype, weights_fingerprint
from inranker.models import resolve
from inranker.recipe import TeacherSettings
from inranker.store import fingerprint
from inranker.types import Logits, Pair

if TYPE_CHECKING:
    import torch


class BiEncoderTeacher:
    """Cosine of mean-pooled embeddings, as (-x / 2, +x / 2); every distinct text is embedded once."""

    def __init__(self, settings: TeacherSettings) -> None:
        from tokenizers import Tokenizer
        from transformers import AutoModel

        folder = resolve(settings.model)
        self.name = f"bi-encoder:{settings.model}"
        self.device = pick_device()
        self.batch_tokens = settings.batch_tokens
        try:
            model = AutoModel.from_pretrained(folder, dtype=pick_dtype(settings.dtype, self.device))
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{settings.model}: no encoder: {str(error).splitlines()[0]}") from None
        self.model = model.to(self.device).eval()
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(min(settings.max_length, model.config.max_position_embeddings))
        self.fingerprint = fingerprint(
            {"kind": "bi-encoder", "weights": weights_fingerprint(folder), "length": settings.max_length},
            settings.dtype,
        )

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, float32 [n, width]."""
        import torch

        encoded = [e.ids for e in self._tokenizer.encode_batch_fast(list(texts))]
        out = np.empty((len(texts), self.model.config.hidden_size), dtype=np.float32)
        with torch.inference_mode():
            for indices in plan_batches([len(ids) for ids in encoded], self.batch_tokens):
                out[indices] = self._pool([encoded[i] for i in indices]).cpu().numpy()
        return out

    def _pool(self, batch: list[list[int]]) -> torch.Tensor:
        import torch

        ids, lengths = pad_right(batch, 0, self.device)
        mask = _mask(ids, lengths)
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        mean = (hidden * mask[..., None]).sum(1) / lengths[:, None]
        return torch.nn.functional.normalize(mean, dim=1)

    def logits(self, pairs: Sequence[Pair]) -> Logits:
        """Halves of the cosine, float32 [n, 2]."""
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        place = {text: row for row, text in enumerate(texts)}
        vectors = self.embed(texts) if texts else np.empty((0, 1), np.float32)
        left = vectors[[place[q] for q, _ in pairs]]
        right = vectors[[place[d] for _, d in pairs]]
        return halves((left * right).sum(axis=1))


TEACHERS.register("bi-encoder")(BiEncoderTeacher)
