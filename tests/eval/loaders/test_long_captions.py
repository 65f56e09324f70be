"""ShareGPT4V, Urban1k, DOCCI, DCI."""

import hashlib
import json

import pytest

from llm2clip.eval.datasets.tar_images import DatasetError
from llm2clip.eval.loaders.long_captions import sentences


def share_record(number, *, text="In the center\nof the image", image=None):
    return {
        "id": str(number),
        "image": image or f"sam/images/sa_{number}.jpg",
        "conversations": [
            {"from": "human", "value": "What is it?\n<image>"},
            {"from": "gpt", "value": f"{text} {number}"},
        ],
    }


def share(folder, records, *, tail=""):
    names = [record["image"].removeprefix("sam/images/") for record in records]
    folder.images("sharegpt4v/sam/images", names)
    file = folder.json("sharegpt4v/share-captioner_coco_lcs_sam_1246k_1107.json", records)
    file.write_text(file.read_text()[:-1] + tail + "]")
    return file


def test_sharegpt4v_reads_the_first_thousand_records(folder, linked):
    records = [share_record(number) for number in range(1000)]
    share(folder, records, tail=', {"id": "1000", "image": "never read')
    found = folder.load("sharegpt4v-1k")
    assert (found.protocol, found.complete) == ("sharegpt4v-1k", True)
    expected = "In the center of the image 7"
    assert linked(found)[7] == (expected, ["sam/images/sa_7.jpg"])


def test_sharegpt4v_reads_records_longer_than_a_piece(folder):
    long = "word " * 300_000
    share(folder, [share_record(number, text=long) for number in range(2)])
    found = folder.load("sharegpt4v-1k")
    assert [len(caption) for caption in found.captions] == [len(long) + 2] * 2
    assert found.id == "sharegpt4v-1k+partial"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (share_record(1, image="coco/train2017/1.jpg"), "record 1: got image coco/train2017/1.jpg"),
        ({**share_record(1), "conversations": []}, "got 0 turns, expected a question and its answer"),
        ({**share_record(1), "image": "../../secret.jpg"}, "expected one of SA-1B"),
        ({**share_record(1), "image": "sam/../../secret.jpg"}, r"got the image name .*secret\.jpg'"),
        (["no object"], "record 1: got list, expected dict"),
    ],
)
def test_sharegpt4v_refuses_another_order_or_form(folder, record, message):
    folder.images("sharegpt4v/sam/images", ["sa_0.jpg"])
    folder.json("sharegpt4v/share4v_sam_10k.json", [share_record(0), record])
    with pytest.raises(DatasetError, match=message):
        folder.load("sharegpt4v-1k")


def test_sharegpt4v_refuses_a_list_cut_off(folder):
    file = share(folder, [share_record(number) for number in range(3)])
    file.write_text(file.read_text()[:-30])
    with pytest.raises(DatasetError, match="record 2: damaged or cut off"):
        folder.load("sharegpt4v-1k")
    file.write_text('{"no": "list"}')
    with pytest.raises(DatasetError, match="expected a JSON list"):
        folder.load("sharegpt4v-1k")


def urban(folder, *, images=1000, texts=1000):
    folder.images("Urban1k/image", [f"{number}.jpg" for number in range(1, images + 1)])
    for number in range(1, texts + 1):
        folder.text(f"Urban1k/caption/{number}.txt", f"A street, number {number}.\r\n")


def test_urban1k_pairs_by_number_and_takes_the_first_line(folder, linked):
    urban(folder)
    folder.text("Urban1k/caption/10.txt", "First line.\nSecond line.\n")
    found = folder.load("urban1k")
    assert (found.protocol, found.complete) == ("urban1k", True)
    pairs = linked(found)
    assert pairs[8] == ("A street, number 9.", ["9.jpg"])
    assert pairs[9] == ("First line.", ["10.jpg"])
    assert found.notes == ("1 caption files have more lines; only the first is used",)
    before = found.files["Urban1k/caption/"]
    folder.text("Urban1k/caption/10.txt", "First line.\nAnother second line.\n")
    assert folder.load("urban1k").files["Urban1k/caption/"] != before


def test_urban1k_is_partial_without_a_caption_or_image(folder):
    urban(folder, texts=999)
    (folder.root / "Urban1k/image/5.jpg").unlink()
    (folder.root / "Urban1k/image/6.jpg").write_bytes(b"")
    found = folder.load("urban1k")
    assert (found.protocol, found.complete, found.missing) == ("urban1k+partial", False, ("5.jpg", "6.jpg"))
    assert found.counts.images == 998
    assert found.counts.captions == 997
    assert "2 of 1,000 images are not there: 5.jpg, 6.jpg" in found.notes
    assert any("got 999 captions, expected 1,000" in note for note in found.notes)


def test_urban1k_refuses_other_numbers(folder):
    urban(folder, images=999)
    folder.images("Urban1k/image", ["0.jpg"])
    folder.text("Urban1k/caption/0.txt", "zero")
    (folder.root / "Urban1k/caption/1000.txt").unlink()
    with pytest.raises(DatasetError, match=r"the 1,000 image ids have SHA-256 .* another split"):
        folder.load("urban1k")


def docci_record(number, split="test"):
    name = f"{split}_{number:05d}"
    return {
        "example_id": name,
        "split": split,
        "image_file": f"{name}.jpg",
        "description": f"A long description of {name}.",
    }


def test_docci_takes_the_test_split_only(folder, linked):
    records = [docci_record(0, "train"), docci_record(0), docci_record(1), docci_record(0, "qual_test")]
    folder.json_lines("docci/docci_descriptions.jsonlines", records)
    folder.images("docci/images", [record["image_file"] for record in records])
    found = folder.load("docci-test5k")
    assert linked(found) == [
        (f"A long description of {name}.", [f"{name}.jpg"]) for name in ("test_00000", "test_00001")
    ]
    assert found.protocol == "docci-test5k+partial"


def test_docci_names_the_damaged_line(folder):
    folder.images("docci/images", ["test_00000.jpg"])
    file = folder.json_lines("docci/docci_descriptions.jsonlines", [docci_record(0), docci_record(1)])
    file.write_text(file.read_text()[:-30])
    with pytest.raises(DatasetError, match=r"docci_descriptions\.jsonlines, line 2: damaged or cut off"):
        folder.load("docci-test5k")
    folder.json_lines("docci/docci_descriptions.jsonlines", [docci_record(0), docci_record(0)])
    with pytest.raises(DatasetError, match=r"line 2: image test_00000\.jpg is there twice"):
        folder.load("docci-test5k")
    folder.json_lines("docci/docci_descriptions.jsonlines", [docci_record(0, "train")])
    with pytest.raises(DatasetError, match=r"got splits \['train'\], expected 'test'"):
        folder.load("docci-test5k")


def dci(folder, *, listed):
    base = "dci/densely_captioned_images"
    folder.images(f"{base}/photos", [f"sa_{number}.jpg" for number in range(3)])
    for number in range(3):
        record = {
            "image": f"sa_{number}.jpg",
            "short_caption": f"Short {number}.",
            "extra_caption": "A dog... runs\nfast.",
            "mask_data": {},
            "mask_keys": [],
            "summaries": {"base": ["never used"]},
            "negatives": {},
        }
        folder.json(f"{base}/annotations/sa_{number}-data.json", record)
    folder.json(f"{base}/splits.json", listed)


def test_dci_takes_all_splits_and_joins_sentences(folder, linked):
    dci(folder, listed={"train": ["sa_2-data.json"], "valid": ["sa_0-data.json"], "test": ["sa_1-data.json"]})
    found = folder.load("dci-full7805")
    lines = []
    for number in (2, 0, 1):
        name = f"sa_{number}-data.json"
        content = (folder.root / "dci/densely_captioned_images/annotations" / name).read_bytes()
        lines.append(f"{name} {hashlib.sha256(content).hexdigest()}\n")
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert found.files["dci/densely_captioned_images/annotations/"] == expected
    assert linked(found) == [
        (f"Short {number}. A dog. runs. fast", [f"sa_{number}.jpg"]) for number in (2, 0, 1)
    ]


def test_dci_refuses_a_missing_annotation(folder):
    dci(folder, listed={"test": ["sa_9-data.json"]})
    with pytest.raises(DatasetError, match=r"lists sa_9-data\.json, expected that file in"):
        folder.load("dci-full7805")


def test_sentences_follow_lotlip():
    assert sentences("One. Two</s>three\n\n . four.") == "One. Two. three. four"
    assert json.dumps(sentences("")) == '""'
