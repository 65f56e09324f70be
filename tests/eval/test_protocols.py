"""The table of protocols: whole, consistent, and the same as the manual and the published table say."""

import re
from pathlib import Path

import pytest

from llm2clip.eval.datasets import protocols
from llm2clip.eval.datasets.protocols import Counts, find_protocol, protocol_ids, source
from llm2clip.eval.datasets.tar_images import DatasetError
from llm2clip.eval.loaders.load import READERS
from llm2clip.eval.results.published_numbers import published_rows

MANUAL = Path(__file__).parents[2] / "docs" / "datasets.md"
WANTED = """flickr30k flickr30k-full31k coco-5k coco-val2017-5k sharegpt4v-1k sharegpt4v-10k urban1k docci-test5k
dci-full7805 flickr30k-cn flickr30k-cna coco-cn-1k coco-cn-5kcap muge-valid xm3600-first xm3600-all xtd10 multi30k
xflickrco wit-iglue"""


def test_readers_match_the_declared_protocols():
    assert set(WANTED.split()) <= set(protocol_ids())
    assert {find_protocol(name).loader for name in protocol_ids()} == set(READERS)


def test_protocols_are_declared_in_full():
    for name in protocol_ids():
        protocol = find_protocol(name)
        assert {"captions", "images"} <= set(protocol.needs)
        assert set(protocol.directions) <= {"t2i", "i2t"}
        assert set(protocol.by_language) <= set(protocol.languages)
        for need in protocol.needs.values():
            spelt = any("{language}" in path for path in need.paths)
            assert spelt <= bool(protocol.languages)
            assert not any(path.startswith(("/", "..")) for path in need.paths)
            for key in need.sources:
                assert source(key).licence
                assert "http" not in source(key).get


def test_protocol_counts_agree():
    # Five captions an image, except where the papers say otherwise.
    for name in ("flickr30k", "flickr30k-full31k", "flickr30k-cn", "flickr30k-cna", "coco-cn-5kcap"):
        counts = find_protocol(name).counts
        assert counts.captions == 5 * counts.images
    # Printed values are whole numbers of hits: 58.36865 % of COCO's, 64.10 % and 88.79 % of COCO-CN's.
    assert 0.5836865 * find_protocol("coco-5k").counts.captions == pytest.approx(14598, abs=0.01)
    captions = find_protocol("coco-cn-1k").counts.captions
    assert [round(100 * hits / captions, 2) for hits in (675, 935)] == [64.10, 88.79]
    rows = sum(counts.captions for counts in find_protocol("wit-iglue").by_language.values())
    assert rows == 890 + 860 + 891 + 570 + 1000 + 874 + 901 + 1000 + 931 + 721 + 946


def test_find_protocol_suggests_near_names():
    with pytest.raises(DatasetError, match="unknown protocol 'flickr30'; did you mean flickr30k"):
        find_protocol("flickr30")
    with pytest.raises(DatasetError, match="unknown protocol 'qqq'; expected one of: flickr30k, "):
        find_protocol("qqq")


def test_protocol_difference_in_words():
    protocol = find_protocol("xm3600-all")
    assert protocol.difference(Counts(images=3600, captions=7000), language="de") == ""
    assert protocol.difference(Counts(images=3599), language="de") == "got 3,599 images, expected 3,600"
    greek = find_protocol("wit-iglue").difference(Counts(images=1, captions=570), language="el")
    assert greek == "got 1 images, expected 541; got no number of pairs, expected 570"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"title": "x", "colour": 1}, r"protocol p: unknown keys \['colour'\]"),
        ({"title": "x"}, r"protocol p: keys \['counts'.*\] are missing"),
    ],
)
def test_protocol_table_refuses_unknown_or_missing_keys(entry, message):
    with pytest.raises(DatasetError, match=message):
        protocols._make(protocols.Protocol, {"id": "p", **entry}, where="protocol p")


def test_datasets_page_lists_the_declared_protocols():
    rows = re.findall(
        r"^\| `([\w-]+)` \| ([\w, ]+) \| ([\w, ]+) \|", MANUAL.read_text(encoding="utf-8"), re.M
    )
    said = {name: (images, captions) for name, images, captions in rows}

    def shown(value):
        return f"{value:,}" if value else "by language"

    declared = {
        name: (shown(counts.images), shown(counts.captions))
        for name in protocol_ids()
        for counts in [find_protocol(name).counts]
    }
    assert said == declared


def test_protocols_cover_the_published_table():
    unclear = ("coco-5k-mbeir", "coco-5k-mixed", "dci-full7805-mixed")
    for name, _, language in {row.dataset.partition(":") for row in published_rows()}:
        if name not in unclear and not language.startswith("avg"):
            assert (language or None) in (find_protocol(name).languages or (None,))
