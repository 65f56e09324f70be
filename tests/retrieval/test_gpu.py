"""On a GPU the same images are found as on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm2clip.encoders import load_encoder
from llm2clip.indexer import build_index, open_corpus
from llm2clip.retrieval import Searcher
from llm2clip.retrieval.demo import QUERIES


@pytest.mark.gpu
def test_searcher_finds_the_same_on_a_gpu(tmp_path: Path):
    texts = [text for _, text, _ in QUERIES]
    images = [record.read() for _, record in zip(range(20), open_corpus("sample:").records(), strict=False)]
    found = {}
    for device in ("cpu", "cuda"):
        encoder = load_encoder("nano", device=device, dtype="float32")
        build_index("sample:", tmp_path / device, encoder=encoder)
        with Searcher.open(tmp_path / device, encoder=encoder) as searcher:
            found[device] = searcher.search(texts, k=5) + searcher.search_images(images, k=5)
    for here, there in zip(found["cpu"], found["cuda"], strict=True):
        assert here[0].key == there[0].key
        assert [hit.score for hit in here] == pytest.approx([hit.score for hit in there], abs=2e-3)
