"""PyTorch: the GPU path, and the one that needs no export."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inranker.batching import plan_batches
from inranker.errors import ModelError, require
from inranker.rank.backend import to_margins
from inranker.rank.folder import ModelFolder, Sequences
from inranker.rank.work import Work
from inranker.sequence import EncoderSequences, TokenSequence


class TorchBackend:
    """A Hugging Face ranker; bf16 on a GPU, fp32 on a CPU unless told otherwise.

    BERT-like rankers run without padding on a GPU (see `packed`); all else in batches sorted by length.
    """

    name = "torch"
    batch_dependent = False

    def __init__(
        self,
        folder: ModelFolder,
        precision: str,
        *,
        threads: int | None = None,
        device: str | None = None,
        batch_tokens: int | None = None,
        packed: bool | None = None,
        compiled: bool = False,
    ) -> None:
        """`packed`: run without padding; None: where that is fast, on a GPU in half precision.

        `compiled`: through torch.compile, which takes a minute before the first score.
        """
        torch = require("torch", "distill")
        require("transformers", "distill")
        if threads is not None:
            torch.set_num_threads(threads)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        on_gpu = self.device.type == "cuda"
        if precision == "auto":
            precision = "bf16" if on_gpu else "fp32"
        if precision not in ("fp32", "bf16"):
            raise ModelError(f"the torch back-end has no precision {precision!r}; known: auto, fp32, bf16")
        self.precision = precision
        self.batch_tokens = batch_tokens or (131072 if on_gpu else 4096)
        self.chunk = 65536 if on_gpu else 1024
        self._torch = torch
        self._module = load_module(folder, {"fp32": torch.float32, "bf16": torch.bfloat16}[precision])
        self._packed = folder.config.get("model_type") == "bert" and (
            packed if packed is not None else on_gpu and precision == "bf16"
        )
        if self._packed:
            from inranker.rank.packed import PackedBert

            self._module = PackedBert(self._module)
        self._inputs = set(inspect.signature(self._module.forward).parameters)
        self._module.to(self.device).eval()
        if compiled:
            self._module = torch.compile(self._module, dynamic=True)

    def margins(self, sequences: Sequence[TokenSequence]) -> NDArray[np.float32]:
        """See `Backend`."""
        torch = self._torch
        if self._packed:
            from inranker.rank.packed import packed_sequences

            return self._run_packed(len(sequences), packed_sequences(sequences, self.batch_tokens, self.device))
        result = np.empty(len(sequences), dtype=np.float32)
        with torch.inference_mode():
            for batch in plan_batches([len(s.input_ids) for s in sequences], self.batch_tokens):
                inputs = _pad([sequences[i] for i in batch])
                tensors = {k: torch.from_numpy(v).to(self.device) for k, v in inputs.items() if k in self._inputs}
                output = self._module(**tensors)
                result[batch] = to_margins(getattr(output, "logits", output).float().cpu().numpy())
        return result

    def margins_of(self, work: Work, builder: Sequences) -> NDArray[np.float32]:
        """See `Backend`."""
        if self._packed and isinstance(builder, EncoderSequences):
            from inranker.rank.packed import Packer

            batches = Packer(work, builder, self.device).batches(self.batch_tokens)
            return self._run_packed(len(work.owner), batches)
        return self.margins(work.sequences(builder))

    def _run_packed(self, count: int, batches: Iterable[tuple[NDArray[np.int64], Any]]) -> NDArray[np.float32]:
        """Score packed batches; the GPU is waited for once, at the end."""
        torch = self._torch
        places, parts = [], []
        with torch.inference_mode():
            for batch, packed in batches:
                places.append(batch)
                parts.append(self._module(packed).float())
            result = np.empty(count, dtype=np.float32)
            if parts:
                result[np.concatenate(places)] = to_margins(torch.cat(parts).cpu().numpy())
        return result

    def close(self) -> None:
        """See `Backend`."""
        del self._module


def load_module(folder: ModelFolder, dtype: Any) -> Any:
    """The folder's torch module; called with the padded inputs it gives margins [n], or a result with `.logits`.

    Raises:
        ModelError: the folder's weights are missing, damaged, or another architecture's.
    """
    for path in folder.path.glob("*.safetensors"):
        folder.file(path.name)  # refuses a link that leads out of the folder
    if folder.settings.architecture == "t5":
        from inranker.t5.model import load_t5

        return load_t5(folder.path, folder.settings, dtype)[0]
    transformers = require("transformers", "distill")
    try:
        return transformers.AutoModelForSequenceClassification.from_pretrained(
            folder.path, dtype=dtype, local_files_only=True, use_safetensors=True
        )
    except Exception as error:  # damaged weights raise an exception of safetensors' own
        raise ModelError(f"{folder.path}: cannot be loaded into torch: {str(error).splitlines()[0]}") from None


def _pad(batch: Sequence[TokenSequence]) -> dict[str, NDArray[np.int64]]:
    """A model's inputs, int64 [n, length of the longest sequence]."""
    length = max(len(s.input_ids) for s in batch)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    inputs = {name: np.zeros((len(batch), length), dtype=np.int64) for name in names}
    for row, (ids, types) in enumerate(batch):
        inputs["input_ids"][row, : len(ids)] = ids
        inputs["attention_mask"][row, : len(ids)] = 1
        if types is not None:
            inputs["token_type_ids"][row, : len(ids)] = types
    return inputs
