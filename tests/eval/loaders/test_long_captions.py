"""ShareGPT4V, Urban1k, DOCCI, DCI."""

import hashlib
import json

import pytest

from llm2clip.eval.loaders.long_captions import sentences

SHARE_FILE = "sharegpt4v/share-captioner_coco_lcs_sam_1246k_1107.json"
DOCCI_FILE = "docci/docci_descriptions.jsonlines"
DCI = "dci/densely_captioned_images"


def share_record(number, *, text="In the center\nof the image", image=None):
    told = [("human", "What is it?\n<image>"), ("gpt", f"{text} {number}")]
    return {
        "id": str(number),
        "image": image or f"sam/images/sa_{number}.jpg",
        "conversations": [{"from": who, "value": value} for who, value in told],
    }


def share(records, *, tail="]"):
    names = [record["image"].removeprefix("sam/images/") for record in records]
    return {"sharegpt4v/sam/images/": names, SHARE_FILE: json.dumps(records)[:-1] + tail}


def test_sharegpt4v_reads_the_first_thousand_records(folder, linked):
    records = [share_record(number) for number in range(1000)]
    folder.fill(share(records, tail=', {"id": "1000", "image": "never read]'))
    found = folder.load("sharegpt4v-1k")
    assert (found.protocol, found.complete) == ("sharegpt4v-1k", True)
    assert linked(found)[7] == ("In the center of the image 7", ["sam/images/sa_7.jpg"])


def test_sharegpt4v_reads_records_longer_than_a_piece(folder):
    long = "word " * 300_000
    folder.fill(share([share_record(number, text=long) for number in range(2)]))
    found = folder.load("sharegpt4v-1k")
    assert [len(caption) for caption in found.captions] == [len(long) + 2] * 2
    assert found.id == "sharegpt4v-1k+partial"


def urban(folder, *, images=1000, texts=1000):
    folder.images("Urban1k/image", [f"{number}.jpg" for number in range(1, images + 1)])
    told = {
        f"Urban1k/caption/{number}.txt": f"A street, number {number}.\r\n" for number in range(1, texts + 1)
    }
    folder.fill(told)


def test_urban1k_pairs_by_number_and_takes_the_first_line(folder, linked):
    urban(folder)
    folder.text("Urban1k/caption/10.txt", "First line.\nSecond line.\n")
    found = folder.load("urban1k")
    assert (found.protocol, found.complete) == ("urban1k", True)
    assert linked(found)[8:10] == [("A street, number 9.", ["9.jpg"]), ("First line.", ["10.jpg"])]
    longer, unverified = found.notes
    assert longer == "1 caption file with more lines; only the first is used"
    assert unverified.startswith("images unverified: their names are numbers")
    before = found.files["Urban1k/caption/"]
    folder.text("Urban1k/caption/10.txt", "First line.\nAnother second line.\n")
    assert folder.load("urban1k").files["Urban1k/caption/"] != before


def test_urban1k_is_partial_without_a_caption_or_image(folder):
    urban(folder, texts=999)
    (folder.root / "Urban1k/image/5.jpg").unlink()
    (folder.root / "Urban1k/image/6.jpg").write_bytes(b"")
    found = folder.load("urban1k")
    assert (found.protocol, found.complete, found.missing) == ("urban1k+partial", False, ("5.jpg", "6.jpg"))
    assert (found.counts.images, found.counts.captions) == (998, 997)
    assert "2 of 1,000 images missing: 5.jpg, 6.jpg" in found.notes
    assert any("got 999 captions, expected 1,000" in note for note in found.notes)


def test_urban1k_refuses_other_numbers(folder):
    urban(folder, images=999, texts=999)
    files = {"Urban1k/image/": ["0.jpg"], "Urban1k/caption/0.txt": "zero"}
    folder.refuses("urban1k", files, r"the 1,000 image ids have SHA-256 .* another split")


def docci(*numbers, split="test"):
    names = [f"{split}_{number:05d}" for number in numbers]
    return [
        {"example_id": name, "split": split, "image_file": f"{name}.jpg", "description": f"About {name}."}
        for name in names
    ]


def test_docci_takes_the_test_split_only(folder, linked):
    records = docci(0, split="train") + docci(0, 1) + docci(0, split="qual_test")
    folder.fill({DOCCI_FILE: records, "docci/images/": [record["image_file"] for record in records]})
    found = folder.load("docci-test5k")
    names = ("test_00000", "test_00001")
    assert linked(found) == [(f"About {name}.", [f"{name}.jpg"]) for name in names]
    assert found.protocol == "docci-test5k+partial"


def dci(listed):
    files = {f"{DCI}/photos/": [f"sa_{number}.jpg" for number in range(3)], f"{DCI}/splits.json": listed}
    for number in range(3):
        files[f"{DCI}/annotations/sa_{number}-data.json"] = {
            "image": f"sa_{number}.jpg",
            "short_caption": f"Short {number}.",
            "extra_caption": "A dog... runs\nfast.",
            "mask_data": {},
            "mask_keys": [],
            "summaries": {"base": ["never used"]},
            "negatives": {},
        }
    return files


def test_dci_takes_all_splits_and_joins_sentences(folder, linked):
    folder.fill(dci({"train": ["sa_2-data.json"], "valid": ["sa_0-data.json"], "test": ["sa_1-data.json"]}))
    found = folder.load("dci-full7805")
    lines = []
    for number in (2, 0, 1):
        name = f"sa_{number}-data.json"
        content = (folder.root / DCI / "annotations" / name).read_bytes()
        lines.append(f"{name} {hashlib.sha256(content).hexdigest()}\n")
    assert found.files[f"{DCI}/annotations/"] == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert linked(found) == [(f"Short {n}. A dog. runs. fast", [f"sa_{n}.jpg"]) for n in (2, 0, 1)]


def test_sentences_follow_lotlip():
    assert sentences("One. Two</s>three\n\n . four.") == "One. Two. three. four"
    assert json.dumps(sentences("")) == '""'


def second(record):
    """ShareGPT4V whose record 1 is another."""
    files = {"sharegpt4v/sam/images/": ["sa_0.jpg"]}
    return files | {"sharegpt4v/share4v_sam_10k.json": [share_record(0), record]}


def docci_file(content):
    return {"docci/images/": ["test_00000.jpg"], DOCCI_FILE: content}


SHARE_CUT = {SHARE_FILE: json.dumps([share_record(n) for n in range(3)])[:-30], "sharegpt4v/sam/images/": []}
DOCCI_CUT = "".join(json.dumps(each) + "\n" for each in docci(0, 1))[:-30]


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        *(
            ("sharegpt4v-1k", second(record), message)
            for record, message in (
                (share_record(1, image="coco/train2017/1.jpg"), "record 1: got image coco/train2017/1.jpg"),
                (share_record(1) | {"conversations": []}, "got 0 turns, expected a question and its answer"),
                (share_record(1, image="../../secret.jpg"), "expected one of SA-1B"),
                (share_record(1, image="sam/../../secret.jpg"), r"got the image name .*secret\.jpg'"),
                (["no object"], "record 1: got list, expected dict"),
            )
        ),
        ("sharegpt4v-1k", SHARE_CUT, "record 2: damaged or cut off"),
        ("sharegpt4v-1k", SHARE_CUT | {SHARE_FILE: '{"no": "list"}'}, "expected a JSON list"),
        ("docci-test5k", docci_file(DOCCI_CUT), r"docci_descriptions\.jsonlines, line 2: damaged or cut off"),
        ("docci-test5k", docci_file(docci(0, 0)), r"line 2: image test_00000\.jpg is there twice"),
        ("docci-test5k", docci_file(docci(0, split="train")), r"got splits \['train'\], expected 'test'"),
        ("dci-full7805", dci({"test": ["sa_9-data.json"]}), r"lists sa_9-data\.json, expected that file in"),
    ],
    ids=range(11),
)
def test_load_protocol_refuses_damaged_sets_of_long_captions(folder, name, files, message):
    folder.refuses(name, files, message)
