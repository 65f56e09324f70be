"""Other programs that drive our encoders, where they are installed, and our own counting of the same."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from llm2clip.encoders import FakeEncoder
from llm2clip.encoders.fake import COLOURS
from llm2clip.eval.metrics.recall import Embeddings, Unmatched, retrieval_metrics
from llm2clip.eval.runner.harnesses import MtebEncoder, Texts, clip_benchmark_parts

WORDS = list(COLOURS)
IMAGES = [Image.new("RGB", (16, 16), COLOURS[word]) for word in WORDS]
CAPTIONS = [f"a {word} thing" for word in WORDS]
OWNER = [1, *range(1, len(WORDS))]
"""The first caption belongs to the second image, which no colour-blind reader would say."""


def test_mteb_encoder_gives_the_encoders_vectors():
    encoder = FakeEncoder()
    wrapped = MtebEncoder(encoder)
    texts, images = encoder.encode_texts(CAPTIONS), encoder.encode_images(IMAGES)
    batches = [{"text": CAPTIONS[:5]}, {"text": CAPTIONS[5:]}]
    np.testing.assert_array_equal(wrapped.encode(batches, task_metadata=None), texts)
    np.testing.assert_array_equal(wrapped.encode([{"image": IMAGES}], prompt_type=None), images)
    both = wrapped.encode([{"text": CAPTIONS, "image": IMAGES}])
    expected = texts + images
    np.testing.assert_allclose(both, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)
    assert wrapped.encode([]).shape == (0, encoder.info.dim)
    with pytest.raises(ValueError, match=r"got a batch of \['audio'\], expected 'text' or 'image'"):
        wrapped.encode([{"audio": [1]}])


def test_mteb_encoder_similarity_is_the_inner_product():
    wrapped = MtebEncoder(FakeEncoder())
    first, second = np.eye(3, 4, dtype=np.float32), torch.ones(2, 4)
    assert wrapped.similarity(first, second).tolist() == [[1, 1]] * 3
    assert wrapped.similarity_pairwise(first[:2], second).tolist() == [1, 1]
    assert wrapped.similarity(first[0], second).tolist() == [[1, 1]]


def test_clip_benchmark_parts_give_the_encoders_vectors():
    encoder = FakeEncoder()
    model, transform, tokenizer = clip_benchmark_parts(encoder)
    tokens = tokenizer(CAPTIONS).to("cpu")
    assert isinstance(tokens, Texts)
    np.testing.assert_array_equal(model.eval().encode_text(tokens).numpy(), encoder.encode_texts(CAPTIONS))
    pixels = torch.stack([transform(image) for image in IMAGES])
    np.testing.assert_array_equal(model.encode_image(pixels).numpy(), encoder.encode_images(IMAGES))


def ours(k):
    encoder = FakeEncoder()
    vectors = Embeddings(texts=encoder.encode_texts(CAPTIONS), images=encoder.encode_images(IMAGES))
    found = retrieval_metrics(vectors, positives=np.array(OWNER), ks=(k,), unmatched=Unmatched.MISS)
    return found.text_to_image.recall[k].pessimistic, found.image_to_text.recall[k].pessimistic


def test_mteb_encoder_counts_the_same():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own dependencies
        mteb = pytest.importorskip("mteb", reason="MTEB is not installed: pip install mteb")
        from datasets import Dataset
        from mteb.abstasks.retrieval import AbsTaskRetrieval
        from mteb.abstasks.task_metadata import TaskMetadata
        from mteb.models.models_protocols import EncoderProtocol

        unsaid = "reference date domains task_subtypes license annotations_creators dialect sample_creation"

        class Colours(AbsTaskRetrieval):
            metadata = TaskMetadata(
                name="Colours",
                description="colours by name",
                dataset={"path": "none", "revision": "1"},
                type="Any2AnyRetrieval",
                category="t2i",
                modalities=["text", "image"],
                eval_splits=["test"],
                eval_langs=["eng-Latn"],
                main_score="hit_rate_at_1",
                bibtex_citation="",
                **dict.fromkeys(unsaid.split()),
            )

            def load_data(self, **_):
                corpus = [{"id": f"i{n}", "image": one, "modality": "image"} for n, one in enumerate(IMAGES)]
                asked = [{"id": f"q{n}", "text": one, "modality": "text"} for n, one in enumerate(CAPTIONS)]
                right = {f"q{n}": {f"i{image}": 1} for n, image in enumerate(OWNER)}
                split = {"corpus": Dataset.from_list(corpus), "queries": Dataset.from_list(asked)}
                self.dataset = {"default": {"test": {**split, "relevant_docs": right, "top_ranked": None}}}
                self.data_loaded = True

        wrapped = MtebEncoder(FakeEncoder())
        assert isinstance(wrapped, EncoderProtocol)
        assert wrapped.mteb_model_meta.name == "llm2clip/fake"
        found = mteb.evaluate(wrapped, Colours(), cache=None)
    scores = found.task_results[0].scores["test"][0]
    assert scores["hit_rate_at_1"] == pytest.approx(ours(1)[0], abs=1e-5)
    assert scores["hit_rate_at_5"] == pytest.approx(ours(5)[0], abs=1e-5)
    assert scores["hit_rate_at_1"] == pytest.approx(7 / 8, abs=1e-5)


def test_clip_benchmark_parts_count_the_same():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        retrieval = pytest.importorskip(
            "clip_benchmark.metrics.zeroshot_retrieval",
            reason="CLIP_benchmark is not installed: pip install clip-benchmark",
        )
        model, transform, tokenizer = clip_benchmark_parts(FakeEncoder())
        owned = list(zip(CAPTIONS, OWNER, strict=True))
        captions = [[text for text, owner in owned if owner == n] for n in range(8)]
        images = torch.stack([transform(one) for one in IMAGES])
        batches = [(images[start : start + 4], captions[start : start + 4]) for start in (0, 4)]
        found = retrieval.evaluate(model, batches, tokenizer, "cpu", amp=False, recall_k_list=[1, 5])
    # An image without a caption is asked there and never answered.
    for k in (1, 5):
        assert found[f"image_retrieval_recall@{k}"] == pytest.approx(ours(k)[0])
        assert found[f"text_retrieval_recall@{k}"] == pytest.approx(ours(k)[1])
