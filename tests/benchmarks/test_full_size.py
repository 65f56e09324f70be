"""The files that the full-size measurement writes are those of the published layouts, and load."""

from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
TOKENIZER = ROOT / "tests" / "golden" / "data" / "d_llm2vec" / "llama1b_like" / "model" / "tokenizer.json"


def test_full_size_files_load_as_published_layouts(tmp_path):
    from benchmarks.full_size import write_llama, write_tower
    from llm2clip.encoders import load_encoder

    tower = write_tower(tmp_path / "tower", small=True)
    llama = write_llama(tmp_path / "llama", small=True, tokenizer=TOKENIZER)
    encoder = load_encoder(tmp_path / "tower", language_model=tmp_path / "llama", device="cpu")
    assert encoder.info.parameters == tower + llama
    assert encoder.encode_texts(["a dog", "一只狗"]).shape == (2, 64)
    assert encoder.source.vision.plan.layout == "openai"
    assert encoder.text_tower.source.plan.config.rope_scaling is not None
