"""Students: small rankers to be trained, as a Hugging Face folder on disk and a torch module in memory."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from inranker.errors import InputError, ModelError
from inranker.models import resolve
from inranker.recipe import StudentSettings
from inranker.sequence import EncoderSequences, ModelSettings
from inranker.store import atomic_folder

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "spiece.model")
_DROPOUTS = frozenset({"hidden_dropout_prob", "attention_probs_dropout_prob", "dropout_rate", "attention_dropout"})


@dataclass
class Student:
    """A ranker in memory.

    `module(input_ids, attention_mask, token_type_ids=None)` gives margins, [n]; `sequences` builds its input; `model`
    is the Hugging Face model that `module` wraps, and `source` the folder that its tokenizer comes from.
    """

    module: nn.Module
    model: Any
    sequences: Any
    settings: ModelSettings
    source: Path

    @property
    def pad_id(self) -> int:
        """Token id that fills the end of a batch's rows."""
        return self.model.config.pad_token_id or 0

    def save(self, folder: str | Path) -> Path:
        """Write a folder that transformers and sentence-transformers open, our settings in its `config.json`."""
        folder = Path(folder)
        with atomic_folder(folder) as temporary:
            self.model.save_pretrained(temporary)
            for name in _TOKENIZER_FILES:
                if (self.source / name).is_file():
                    shutil.copy(self.source / name, temporary / name)
            self.settings.write(temporary)
        self.source = folder
        return folder


class OneLogit(nn.Module):
    """A sequence classifier with one label, as margins."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        if model.config.model_type == "bert":
            _compute_first_token_only(model.bert.encoder.layer[-1])

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Margins, float32 [n]."""
        return self._run(input_ids, attention_mask, token_type_ids).logits[:, 0].float()

    def states(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Margins [n], and the states [n, tokens, width] before the first layer and after each."""
        outputs = self._run(input_ids, attention_mask, token_type_ids, output_hidden_states=True)
        return outputs.logits[:, 0].float(), outputs.hidden_states

    def _run(self, ids: Tensor, mask: Tensor, types: Tensor | None, **options: Any) -> Any:
        if types is not None and getattr(self.model.config, "type_vocab_size", 0) > 1:
            options["token_type_ids"] = types
        return self.model(input_ids=ids, attention_mask=mask, **options)


def _compute_first_token_only(layer: Any) -> None:
    """Let a BERT's last layer compute what reaches each sequence's first token, all that the head reads.

    Of the layer's products only keys and values are taken over all tokens: a sixth of its work, which is half of all
    the work of a student with two layers. The layer's parameters and their names stay as they are.
    """
    attention, parts = layer.attention, layer.attention.self

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (parts.num_attention_heads, -1)).transpose(1, 2)

    def forward(hidden_states: Tensor, attention_mask: Tensor | None = None, **_: Any) -> tuple[Tensor, None]:
        first = hidden_states[:, :1]
        context = functional.scaled_dot_product_attention(
            heads(parts.query(first)),
            heads(parts.key(hidden_states)),
            heads(parts.value(hidden_states)),
            attn_mask=None if attention_mask is None else attention_mask[:, :, :1],
            dropout_p=parts.dropout.p if parts.training else 0.0,
        )
        return attention.output(context.transpose(1, 2).flatten(2), first), None

    attention.forward = forward


def load_student(folder: str | Path, kind: str = "encoder", max_length: int | None = None) -> Student:
    """A student from a folder that this package wrote, or from any encoder (its head is then new).

    Raises:
        ModelError: the folder holds no model of that kind.
    """
    folder = Path(folder)
    settings = ModelSettings.read(folder) or ModelSettings(architecture=kind)
    if max_length is not None:
        settings = replace(settings, max_length=max_length)
    if settings.architecture == "t5":
        from inranker.train.t5 import load_t5_student

        return load_t5_student(folder, settings)
    from tokenizers import Tokenizer
    from transformers import AutoModelForSequenceClassification

    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=1, dtype=torch.float32, ignore_mismatched_sizes=True, attn_implementation="sdpa"
        )
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:
        raise ModelError(f"{folder}: no encoder to train: {str(error).splitlines()[0]}") from None
    longest = getattr(model.config, "max_position_embeddings", settings.max_length)
    settings = replace(settings, max_length=min(settings.max_length, longest))
    # The affine of an older training says nothing about the logits of this one.
    sequences = EncoderSequences(tokenizer, settings.max_length)
    return Student(OneLogit(model), model, sequences, settings, folder)


def build_start(settings: StudentSettings, folder: str | Path, seed: int) -> Path:
    """Write the student before training: the start's weights, cut to the chosen layers, with a one-logit head.

    Raises:
        InputError: a layer that the start does not have.
    """
    torch.manual_seed(seed)  # A new head is random: the same recipe must start from the same one.
    student = load_student(resolve(settings.start), settings.kind, settings.max_length)
    if settings.layers is not None:
        keep_layers(student.model, settings.layers)
    if settings.dropout is not None:
        for name in _DROPOUTS & set(vars(student.model.config)):
            setattr(student.model.config, name, settings.dropout)
    student.settings = replace(
        student.settings, max_length=min(settings.max_length, student.settings.max_length), calibration=None
    )
    return student.save(folder)


def keep_layers(model: Any, layers: list[int]) -> None:
    """Cut a Hugging Face encoder to some of its layers, in place.

    Raises:
        InputError: a layer that it does not have, or one named twice.
    """
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == model.config.num_hidden_layers]
    if not stacks:
        raise InputError(f"cannot find the layers of a {model.config.model_type}; leave `layers` out")
    count = len(stacks[0])
    if not layers or len(set(layers)) != len(layers) or not all(0 <= layer < count for layer in layers):
        raise InputError(f"student.layers = {layers}: choose distinct layers from 0 to {count - 1}")
    kept = [stacks[0][layer] for layer in sorted(layers)]
    parent = next(m for m in model.modules() if stacks[0] in m.children())
    name = next(n for n, child in parent.named_children() if child is stacks[0])
    setattr(parent, name, nn.ModuleList(kept))
    model.config.num_hidden_layers = len(kept)
