"""Query writing with the small model that the quickstart uses, fetched through `inranker.models`."""

from __future__ import annotations

from pathlib import Path

import pytest

from inranker import models
from inranker.errors import ModelError
from inranker.generate import generate_queries, read_synthetic
from inranker.generate.backend import Request
from inranker.generate.prompts import load_prompt
from inranker.generate.transformers import TransformersBackend
from inranker.recipe import GenerateSettings
from inranker.types import Document

pytestmark = pytest.mark.real

DOCUMENTS = [
    Document("heapq.heappush", "Push item onto heap, maintaining the heap invariant.", "heapq.heappush(heap, item)"),
    Document(
        "shutil.rmtree", "Delete an entire directory tree; path must point to a directory.", "shutil.rmtree(path)"
    ),
    Document("time.sleep", "Delay execution for a given number of seconds.", "time.sleep(secs)"),
    Document(
        "math.isclose",
        "Determine whether two floating-point numbers are close in value. For the values to be considered close, the "
        "difference between them must be smaller than at least one of the tolerances.",
        "math.isclose(a, b, *, rel_tol=1e-09, abs_tol=0.0)",
    ),
]


@pytest.fixture(scope="module")
def writer() -> str:
    try:
        models.resolve("smollm2-135m-instruct")
    except ModelError as error:
        if "could not download" in str(error):
            pytest.skip(str(error))
        raise
    return "smollm2-135m-instruct"


def test_queries_are_about_their_documents(writer, tmp_path):
    settings = GenerateSettings(model=writer, prompts=["inpars", "keywords"], queries_per_document=2, max_new_tokens=24)
    queries = read_synthetic(generate_queries(DOCUMENTS, settings, tmp_path, 0))
    assert len(queries) >= 6
    contents = {d.id: d.content.lower() for d in DOCUMENTS}
    about = [any(w in contents[q.document_id] for w in q.text.lower().split() if len(w) > 4) for q in queries]
    assert sum(about) >= len(queries) / 2
    assert all(-6 < q.log_probability < 0 for q in queries)


def test_batch_and_shared_prefix_change_nothing(writer):
    """Alone, in a batch, and by the library's own `generate` on the whole prompt."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    settings = GenerateSettings(model=writer, max_new_tokens=12, dtype="float32")
    backend, prompt = TransformersBackend(settings, 0, Path()), load_prompt("inpars")
    requests = [Request(d.id, d.content) for d in DOCUMENTS]
    together = backend.complete(prompt, requests)
    folder = models.transformers_folder(models.resolve(writer))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for request, batched in zip(requests, together, strict=True):
        alone = backend.complete(prompt, [request])[0]
        assert alone.text == batched.text
        assert alone.log_probability == pytest.approx(batched.log_probability, abs=1e-4)
        ids = tokenizer(prompt.text(request.document), return_tensors="pt").input_ids
        with torch.inference_mode():
            output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        text = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        assert text.split("\n")[0] == batched.text
