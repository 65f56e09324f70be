"""Crossmodal-3600, XTD10, Multi30k, xFlickr&CO, WIT."""

import gzip

import pytest

from llm2clip.eval.datasets.protocols import find_protocol

XM_LANGUAGES = find_protocol("xm3600-all").languages
XTD = "Cross-lingual-Test-Dataset-XTD10"
XM_FILE, XM_IMAGES = "xm3600/captions.jsonl", "xm3600/images/"
WIT_FILE, WIT_IMAGES = "iglue/datasets/wit/annotations/test_el.jsonl", "wit-iglue/images/"


def crossmodal(number, captions):
    """One line of captions.jsonl; ``captions`` by language, one caption in the others."""
    record = {"image/key": f"{number:016x}", "image/locale": "en"}
    for language in XM_LANGUAGES:
        texts = captions.get(language, [f"{language} {number}"])
        tokens = {"caption/tokenized": texts, "caption/tokenized/lowercase": texts} if number < 9 else {}
        record[language] = {"caption": texts, **tokens}
    return record


def test_xm3600_in_full(folder, linked):
    assert len(XM_LANGUAGES) == 36
    # 36 x 3,600 = 129,600 captions; 131,775 more make the published total.
    extra, records = 261_375 - 129_600, []
    for number in range(3600):
        more = min(36, extra)
        extra -= more
        both = {language: [f"{language} {number}", f"second {number}"] for language in XM_LANGUAGES[:more]}
        if number < 2175:
            extra -= 1
            both["de"] = [f"de {number}", "zwei", "drei"]
        records.append(crossmodal(number, both))
    assert extra == 0
    folder.fill({XM_IMAGES: [f"{number:016x}.jpg" for number in range(3600)], XM_FILE: records})
    first = folder.load("xm3600-first", "de")
    assert (first.id, first.complete) == ("xm3600-first:de", True)
    assert linked(first)[3599] == ("de 3599", [f"{3599:016x}"])
    every = folder.load("xm3600-all", "de")
    assert (every.id, every.complete, every.counts.captions) == ("xm3600-all:de", True, 3600 * 2 + 2175)
    assert linked(every)[2][0] == "drei"
    # The first image with 36 captions instead of 73: not the published file, whatever the language.
    folder.fill({XM_FILE: [crossmodal(0, {}), *records[1:]]})
    part = folder.load("xm3600-all", "zh")
    assert part.id == "xm3600-all+partial:zh"
    assert part.notes == ("got 261,338 captions in all languages together, expected 261,375",)
    files = {XM_FILE: [crossmodal(0, {"sw": ["x"] * 39}), *records[1:]]}
    folder.refuses("xm3600-all:zh", files, r"got 261,376 captions .* another version of the file")


def xtd_names():
    later = (f"COCO_val2014_{number:012d}.jpg" for number in range(199))
    trained = (f"COCO_train2014_{number:012d}.jpg" for number in range(799))
    return ["COCO_train2014_000000061844.jpg", *trained, *later, "COCO_val2014_000000129945.jpg"]


def xtd(path, lines):
    names = xtd_names()
    return {
        "coco/train2014/": [name for name in names if "train2014" in name],
        "coco/val2014/": [name for name in names if "val2014" in name],
        f"{XTD}/XTD10/test_image_names.txt": "\n".join(names) + "\n",
        f"{XTD}/{path}": "\n".join(lines),
    }


def test_aligned_reads_xtd10_without_last_line_break(folder, linked):
    lines = [f"文 {number}\u2028!" if number else "二度" for number in range(1000)]
    lines[999] = "二度"
    folder.fill(xtd("STAIR/test_1kcaptions_jp.txt", lines))
    found = folder.load("xtd10", "ja")
    assert (found.id, found.complete) == ("xtd10:ja", True)
    assert found.notes == (
        f"{XTD}/STAIR/test_1kcaptions_jp.txt ends without a line break: published so, or cut off in its last line",
    )
    assert linked(found)[3] == ("文 3\u2028!", ["COCO_train2014_000000000002.jpg"])
    # Equal captions stay two queries, each with its own image.
    pairs = zip(found.captions, found.caption_images, strict=True)
    assert [place for text, place in pairs if text == "二度"] == [(0,), (999,)]


def test_aligned_xtd10_with_an_empty_caption_is_partial(folder, linked):
    folder.fill(xtd("MIC/test_1kcaptions_de.txt", [f"Satz {n}" if n != 1 else " " for n in range(1000)]))
    found = folder.load("xtd10:de")
    assert found.id == "xtd10+partial:de"
    assert linked(found)[1] == ("Satz 2", ["COCO_train2014_000000000001.jpg"])
    assert "1 caption without words, left out" in found.notes[-1]
    assert "test_1kcaptions_de.txt, line 2" in found.notes[-1]


def zipped(folder, path, lines):
    file = folder.text(path, "")
    file.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
    return file


def test_aligned_reads_both_multi30k_tasks(folder, linked):
    names = ["1007129816.jpg", *(f"{number}.jpg" for number in range(998)), "97234558.jpg"]
    folder.images("flickr30k/flickr30k-images", names)
    for split in ("task1/image_splits/test_2016_flickr", "task2/image_splits/test_2016_images"):
        folder.text(f"multi30k/data/{split}.txt", "\n".join(names) + "\n")
    base = "multi30k/data/task1/raw/test_2016_flickr"
    file = zipped(folder, f"{base}.cs.gz", [f"věta {number}" for number in range(1000)])
    for turn in range(1, 6):
        lines = [f"Satz {turn} {number}" for number in range(1000)]
        last = zipped(folder, f"multi30k/data/task2/raw/test_2016.{turn}.de.gz", lines)
    found = folder.load("multi30k", "cs")
    assert (found.id, found.complete) == ("multi30k:cs", True)
    assert linked(found)[999] == ("věta 999", ["97234558.jpg"])
    five = folder.load("multi30k-5cap", "de")
    assert (five.complete, len(five.files)) == (True, 6)
    assert linked(five)[5:7] == [("Satz 1 1", ["0.jpg"]), ("Satz 2 1", ["0.jpg"])]
    file.write_bytes(file.read_bytes()[:-20])
    folder.refuses("multi30k:cs", {}, r"cs\.gz: damaged or cut off")
    last.unlink()
    folder.refuses("multi30k-5cap:de", {}, r"no multi30k/data/task2/raw/test_2016\.5\.de\.gz in")


def test_xflickrco_has_images_of_both(folder, linked):
    coco = "COCO_val2014_000000000042.jpg"
    folder.fill({"flickr30k/flickr30k-images/": ["1007129816.jpg"], "coco/val2014/": [coco]})
    records = [
        {"sentences": ["1男が3メガネ"], "id": "1007129816", "img_path": "1007129816.jpg"},
        {"sentences": ["犬"], "id": "42", "img_path": coco},
    ]
    folder.fill({"iglue/datasets/xFlickrCO/annotations/ja/test.jsonl": records})
    found = folder.load("xflickrco", "ja")
    assert linked(found) == [("1男が3メガネ", ["1007129816.jpg"]), ("犬", [coco])]
    assert found.id == "xflickrco+partial:ja"


def wit(*rows, images=()):
    """Rows are (url, caption) with an optional language."""
    records = [
        {
            "image_idx": number,
            "image_url": url,
            "meta_url": url,
            "caption_reference_description": text,
            "language": language[0] if language else "el",
            "page_url": url,
            "wit_ix": f"wit-test_{number}",
        }
        for number, (url, text, *language) in enumerate(rows, 1)
    ]
    return {WIT_IMAGES: images, WIT_FILE: records}


def test_wit_rows_of_one_address_are_one_image(folder, linked):
    host = "https://upload.example.org/a/b"
    map_url, dog = f"{host}/Map_%281897%29.svg", f"{host}/Dog.tif"
    rows = [(map_url, "χάρτης"), (dog, "σκύλος"), (map_url, "ο ίδιος χάρτης"), (f"{host}/Gone.jpg", "τίποτα")]
    folder.fill(wit(*rows, images=["Map_(1897).png", "wit-test_2.jpg", "readme.txt"]))
    found = folder.load("wit-iglue", "el")
    assert linked(found) == [("χάρτης", [map_url]), ("ο ίδιος χάρτης", [map_url]), ("σκύλος", [dog])]
    assert [image.file.name for image in found.images] == ["Map_(1897).png", "wit-test_2.jpg"]
    assert (found.id, found.missing) == ("wit-iglue+partial:el", (f"{host}/Gone.jpg",))
    assert "1 of 3 images missing" in found.notes[0]


def test_wit_refuses_images_of_one_name(folder):
    files = wit(
        ("https://a.example/Map.svg", "one"), ("https://b.example/Map.png", "two"), images=["Map.png"]
    )
    folder.refuses("wit-iglue:el", files, r"Map\.png fits two images, .*a\.example.* such as wit-test_2\.png")
    folder.images("wit-iglue/images", ["wit-test_2.png"])
    found = folder.load("wit-iglue", "el")
    assert [image.file.name for image in found.images] == ["Map.png", "wit-test_2.png"]


NO_QUECHUA = {key: value for key, value in crossmodal(0, {}).items() if key != "quz"}


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("xtd10", {}, r"xtd10 got .* expected one of: en, de, es"),
        ("xtd10:jp", {}, r"xtd10 got .* expected one of: en, de, es"),
        ("coco-5k:en", {}, "coco-5k got language 'en', expected none"),
        ("xm3600-first:quz", {XM_IMAGES: [], XM_FILE: [NO_QUECHUA]}, r"line 1: has .* expected 'quz'"),
        (
            "xtd10:ru",
            xtd("XTD10/test_1kcaptions_ru.txt", ["слово"] * 999),
            r"got 999 lines, expected 1,000, one for each line of .*names",
        ),
        ("wit-iglue:el", wit(("u", "text", "en")), "line 1: got language 'en', expected 'el'"),
        (
            "wit-iglue:el",
            wit(("u/a.jpg", "text")),
            r"wit-iglue:el: none of the 1 images exists, expected u/a\.jpg",
        ),
    ],
    ids=range(7),
)
def test_load_protocol_refuses_damaged_multilingual_sets(folder, name, files, message):
    folder.refuses(name, files, message)
