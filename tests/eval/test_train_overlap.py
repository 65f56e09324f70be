import tomllib
from importlib.resources import files

import pytest

from llm2clip.eval.results.encoder_record import Level, known_overlap


@pytest.mark.parametrize(
    ("encoder", "protocol", "level"),
    [
        ("OFA-Sys/chinese-clip-vit-base-patch16", "coco-cn-1k", Level.TRAINED_ON),
        ("CN-CLIP ViT-B/16", "coco-cn-5kcap+partial", Level.TRAINED_ON),
        ("CN-CLIP ViT-B/16", "flickr30k-cn", Level.NONE_KNOWN),
        ("BeichenZhang/LongCLIP-L", "sharegpt4v-1k", Level.SAME_SOURCE),
        ("BeichenZhang/LongCLIP-L", "sharegpt4v-10k", Level.TRAINED_ON),
        ("Long-CLIP B/16", "urban1k", Level.NONE_KNOWN),
        ("jinaai/jina-clip-v2", "sharegpt4v-1k", Level.SAME_SOURCE),
        ("M-CLIP/XLM-Roberta-Large-Vit-L-14", "xtd10:ru", Level.TRAINED_ON),
        ("BLIP base coco", "xtd10", Level.TRAINED_ON),
        ("openai/clip-vit-base-patch16", "coco-5k", Level.NONE_KNOWN),
        ("random-chinese-clip", "coco-cn-1k", Level.NONE_KNOWN),
    ],
)
def test_known_overlap_of_known_pairs(encoder, protocol, level):
    found = known_overlap([encoder], protocol)
    assert found.level is level
    assert bool(found.why) == bool(found.source) == (level is not Level.NONE_KNOWN)


def test_known_overlap_reaches_every_entry():
    text = files("llm2clip.eval").joinpath("data", "overlap.toml").read_text("utf-8")
    entries = tomllib.loads(text)["overlap"]
    for entry in entries:
        assert entry.keys() == {"encoders", "sets", "level", "why", "source"}
        assert entry["level"] in {"trained-on", "same-source"}
        for pattern in entry["encoders"]:
            assert pattern == pattern.lower()
            for one in entry["sets"]:
                assert known_overlap([pattern.replace("*", "")], one).why == entry["why"]
