"""Models that the native engine runs, in small."""

from __future__ import annotations

import shutil

import onnx

from inranker.export.export import build_graph, quantized_graphs
from inranker.rank.folder import ModelFolder
from inranker.rank.onnx_file import FILES
from inranker.sequence import ModelSettings


def make_folder(folder, tiny_encoder, **shape):
    """A random BERT with an int8 graph, whatever the gate would say of it."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    shutil.copytree(tiny_encoder, folder)
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 3, "intermediate_size": 192, "max_position_embeddings": 600, "num_labels": 1, **shape}
    vocabulary = ModelFolder.open(tiny_encoder).config["vocab_size"]
    model = BertForSequenceClassification(BertConfig(vocab_size=vocabulary, initializer_range=0.15, **sizes))
    model.bert.embeddings.word_embeddings.weight.data[:, 5] *= 20  # a channel much larger than the rest
    model.save_pretrained(folder)
    ModelSettings(max_length=600).write(folder)
    opened = ModelFolder.open(folder)
    (folder / "onnx").mkdir()
    onnx.save(build_graph(opened, 23), folder / FILES["fp32"])
    onnx.save(next(graph for _, graph in quantized_graphs(opened, 23)), folder / FILES["int8"])
    return opened
