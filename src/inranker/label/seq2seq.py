"""monoT5 and its relatives as teachers: the logits of two words at the first decoder step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from inranker.label.teachers import TEACHERS, TorchTeacher, pad_right, pick_device, pick_dtype, weights_fingerprint
from inranker.models import resolve
from inranker.recipe import TeacherSettings
from inranker.sequence import ModelSettings
from inranker.sequence_t5 import t5_sequences
from inranker.types import Pair

if TYPE_CHECKING:
    import torch

    from inranker.t5.fused import FusedT5
    from inranker.t5.model import MonoT5


class Seq2SeqTeacher(TorchTeacher):
    """A T5 or mT5 ranker.

    Without a mode in the settings or in the folder the weights are taken for released ones, fed in `legacy` mode.
    `dtype = "int8"` loads 8-bit matrices through bitsandbytes.
    """

    def __init__(self, settings: TeacherSettings) -> None:
        import torch

        from inranker.t5.model import load_t5

        folder = resolve(settings.model)
        kept = ModelSettings.read(folder) or ModelSettings("t5", "legacy")
        kept = replace(kept, max_length=settings.max_length, mode=settings.mode or kept.mode)
        int8 = settings.dtype == "int8"
        dtype = torch.bfloat16 if int8 else pick_dtype(settings.dtype, pick_device())
        module, tokenizer, kept = load_t5(folder, kept, dtype, int8)
        self._sequences = t5_sequences(tokenizer, kept, module.model.config.model_type)
        identity = {
            "weights": weights_fingerprint(folder),
            "mode": kept.mode,
            "wording": list(self._sequences.wording),
        }
        super().__init__(f"seq2seq:{settings.model}", settings, identity)
        self.module: MonoT5 | FusedT5 = (module if int8 else module.to(self.device)).eval()
        if self.device.type == "cuda" and not int8:
            from inranker.t5.fused import FusedT5

            self.module = FusedT5(module)

    def sequences(self, pairs: Sequence[Pair]) -> list[list[int]]:
        """The prompt in the teacher's mode."""
        return [s.input_ids for s in self._sequences.pairs(pairs)]

    def forward(self, batch: list[list[int]]) -> torch.Tensor:
        """Raw logits, float32 [n, 2]."""
        import torch

        ids, lengths = pad_right(batch, 0, self.device)
        return self.module.logits(ids, (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long())


TEACHERS.register("seq2seq")(Seq2SeqTeacher)
