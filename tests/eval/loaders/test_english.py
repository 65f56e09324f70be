"""Flickr30k and COCO, at their full size where the file is cheap to make."""

import json

import pytest

FLICKR_IMAGES, FLICKR_TEXT = "flickr30k/flickr30k-images/", "flickr30k/flickr30k_test_karpathy.txt"
TOKENS, COCO_FILE = "flickr30k/results_20130124.token", "coco/coco_test_karpathy.json"
KNOWN = ["1007129816.jpg", "97234558.jpg"]
COCO_KNOWN = "COCO_val2014_000000391895.jpg"


def flickr(names):
    lines = (f'{name},"Caption, {turn}, of {name}"\n' for name in names for turn in range(5))
    return {FLICKR_IMAGES: names, FLICKR_TEXT: "image,caption\n" + "".join(lines)}


def flickr_names(count=1000):
    return [*KNOWN, *(f"{number}.jpg" for number in range(1, count - 1))]


def coco_names(count=5000):
    return [COCO_KNOWN, *(f"COCO_val2014_{number:012d}.jpg" for number in range(1, count))]


def coco_schema(names, *, extra):
    """Annotations in the order of ids, not of images; the last ``extra`` images have a sixth caption."""
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    annotations = [
        {"image_id": number, "id": turn * len(names) + number, "caption": f"{name} said {turn}"}
        for turn in range(6)
        for number, name in enumerate(names)
        if turn < 5 or number >= len(names) - extra
    ]
    return {"images": images, "annotations": annotations}


def test_karpathy_reads_clip_benchmarks_text(folder):
    folder.fill(flickr(flickr_names()))
    found = folder.load("flickr30k")
    assert (found.protocol, found.complete) == ("flickr30k", True)
    assert found.notes == ("the file's quotation marks were removed from 5,000 captions with commas",)
    assert found.captions[:2] == ("Caption, 0, of 1007129816.jpg", "Caption, 1, of 1007129816.jpg")
    assert found.caption_images[4999] == (999,)
    assert found.images[999].read().endswith(b"998.jpg")
    assert list(found.files) == [FLICKR_TEXT]


def test_comma_lines_cuts_at_the_first_jpg_and_needs_no_header(folder, linked):
    lines = f"{KNOWN[0]},a sign saying x.jpg, or so\n{KNOWN[1]},two\n"
    folder.fill({FLICKR_IMAGES: KNOWN, FLICKR_TEXT: lines})
    expected = [("a sign saying x.jpg, or so", [KNOWN[0]]), ("two", [KNOWN[1]])]
    assert linked(folder.load("flickr30k")) == expected


def test_comma_lines_removes_quotation_marks(folder):
    lines = ['"Kids, outside."', '"A sign says ""stop""."', '"Stop"', 'He says "hi", twice', '"a", "b"']
    text = "image,caption\n" + "".join(f"{KNOWN[0]},{line}\n" for line in lines) + f"{KNOWN[1]},x\n"
    folder.fill({FLICKR_IMAGES: KNOWN, FLICKR_TEXT: text})
    found = folder.load("flickr30k")
    expected = ("Kids, outside.", 'A sign says "stop".', '"Stop"', 'He says "hi", twice', '"a", "b"', "x")
    assert found.captions == expected
    assert found.notes[0] == "the file's quotation marks were removed from 2 captions with commas"


BLIP = [{"image": f"flickr30k-images/{name}", "caption": ["one", "two"]} for name in KNOWN]
SENTENCES = [{"raw": raw, "tokens": [raw], "imgid": 1, "sentid": 0} for raw in ("one", "two")]
KARPATHY = [
    {"filename": name, "split": split, "imgid": 1, "sentids": [0, 1], "sentences": SENTENCES}
    for name, split in zip(["7.jpg", *KNOWN], ("train", "test", "test"), strict=True)
]


@pytest.mark.parametrize(
    "files",
    [
        {"flickr30k/flickr30k_test.json": BLIP},
        {"flickr30k/dataset_flickr30k.json": {"images": KARPATHY, "dataset": "flickr30k"}},
    ],
    ids=["blip", "karpathy"],
)
def test_karpathy_reads_json_forms(folder, linked, files):
    folder.fill({FLICKR_IMAGES: KNOWN, **files})
    found = folder.load("flickr30k")
    assert linked(found) == [(text, [name]) for name in KNOWN for text in ("one", "two")]
    assert (found.protocol, found.complete) == ("flickr30k+partial", False)
    assert "got 2 images, expected 1,000; got 4 captions, expected 5,000" in found.notes[0]


def test_karpathy_keeps_every_caption_of_coco(folder):
    names = coco_names()
    folder.fill({"coco/val2014/": names, COCO_FILE: coco_schema(names, extra=10)})
    found = folder.load("coco-5k")
    assert (found.protocol, found.complete, len(found.captions)) == ("coco-5k", True, 25010)
    for caption, (place,) in zip(found.captions, found.caption_images, strict=True):
        assert caption.split()[0] == found.images[place].key
    assert [sum(right == (place,) for right in found.caption_images) for place in (4989, 4990)] == [5, 6]


def test_coco_takes_five_captions_per_image_of_val2017(folder):
    names = [f"{number:012d}.jpg" for number in range(5000)]
    schema = coco_schema(names, extra=14)
    folder.fill({"coco/val2017/": names, "coco/annotations/captions_val2017.json": schema})
    found = folder.load("coco-val2017-5k")
    assert (found.complete, len(found.captions)) == (True, 25000)
    assert not any(caption.endswith("said 5") for caption in found.captions)


def test_karpathy_finds_blips_images_below_val2014(folder, linked):
    records = [{"image": f"val2014/{COCO_KNOWN}", "caption": ["one"]}]
    folder.fill({"coco/val2014/": [COCO_KNOWN], "coco/coco_karpathy_test.json": records})
    assert linked(folder.load("coco-5k")) == [("one", [COCO_KNOWN])]


def test_token_reads_all_of_flickr30k(folder, linked):
    names = ["1000092795.jpg", "1007129816.jpg"]
    lines = (f"{name}#{turn}\tcaption {turn}\u2028of # {name}\n" for name in names for turn in range(2))
    folder.fill({FLICKR_IMAGES: names, TOKENS: "".join(lines)})
    found = folder.load("flickr30k-full31k")
    assert linked(found)[1] == ("caption 1\u2028of # 1000092795.jpg", ["1000092795.jpg"])
    assert found.counts.captions == 4
    assert found.id == "flickr30k-full31k+partial"


def changed_coco(change):
    """Three images of COCO whose annotations were changed."""
    content = coco_schema(coco_names(3), extra=0)
    change(content)
    return {"coco/val2014/": coco_names(3), COCO_FILE: content}


def tokens(text):
    return {FLICKR_IMAGES: ["1.jpg"], TOKENS: text}


VALIDATION = {"filename": "1.jpg", "split": "val", "sentences": [{"raw": "one"}]}
CUT = json.dumps(coco_schema(coco_names(3), extra=0))[:-40]


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        (
            "flickr30k",
            flickr([f"{number}.jpg" for number in range(1000)]),
            r"1007129816\.jpg is not among the 1,000 listed.* another split",
        ),
        (
            "flickr30k",
            flickr(flickr_names(1014)),
            "got 1,014 images, expected 1,000: more than the protocol has",
        ),
        (
            "flickr30k",
            {FLICKR_IMAGES: ["1.jpg"], "flickr30k/dataset_flickr30k.json": {"images": [VALIDATION]}},
            r"got images of \['val'\], expected the split 'test'",
        ),
        *(
            ("coco-5k", changed_coco(change), message)
            for change, message in (
                (lambda c: c["annotations"].append({"image_id": 7, "id": 99, "caption": "x"}), "id 7 is not"),
                (lambda c: c["annotations"].append(dict(c["annotations"][0])), "id 0 is there twice"),
                (lambda c: c["images"].append(dict(c["images"][0])), "id 0 is there twice"),
                (lambda c: c["annotations"][0].update(caption=None), "'caption': got NoneType, expected str"),
                (lambda c: c["annotations"][0].pop("caption"), r"has \['id', 'image_id'\], expected 'capt"),
                (lambda c: c.pop("images"), "expected 'images'"),
            )
        ),
        ("coco-5k", {"coco/val2014/": [], COCO_FILE: CUT}, r"coco_test_karpathy\.json: damaged or cut off"),
        (
            "flickr30k-full31k",
            tokens("1007129816.jpg one\n"),
            "line 1: got '1007129816.jpg one', expected 'image#number<TAB>caption'",
        ),
        ("flickr30k-full31k", tokens("1.jpg#0\tone\n1.jpg#0\ttwo\n"), r"line 2: 1\.jpg#0 is there twice"),
    ],
    ids=range(12),
)
def test_load_protocol_refuses_damaged_english_sets(folder, name, files, message):
    folder.refuses(name, files, message)
