"""MUGE, Flickr30k-CN and -CNA, COCO-CN."""

import pytest

from llm2clip.eval.datasets.tar_images import DatasetError
from llm2clip.eval.loaders.chinese import untagged

MUGE_IMAGES, MUGE_TEXTS = "MUGE/valid_imgs.tsv", "MUGE/valid_texts.jsonl"
FLICKR_IMAGES, FLICKR_CN = "flickr30k/flickr30k-images/", "flickr30k/flickr30k_test_zh.txt"
CN_KNOWN = ["1009692167.jpg", "977856234.jpg"]
CN_TEST = ["COCO_val2014_000000299946", "COCO_val2014_000000316323"]
HUMAN, TRANSLATED = (f"imageid.{kind}-caption.txt" for kind in ("human-written", "manually-translated"))
QUERY = {"text_id": 1, "text": "包", "image_ids": [1]}


def muge(*texts, images="1\tAAAA\n"):
    return {MUGE_IMAGES: images, MUGE_TEXTS: texts}


def coco_cn(names, captions, file=HUMAN):
    version = "coco-cn/coco-cn-version1805v1.1"
    return {
        "coco/train2014/": [f"{name}.jpg" for name in names if "train2014" in name],
        "coco/val2014/": [f"{name}.jpg" for name in names if "val2014" in name],
        f"{version}/coco-cn_test.txt": "".join(f"{name}\n" for name in names),
        f"{version}/{file}": "".join(captions),
    }


def test_tsv_reads_muge_with_several_images_per_query(folder, tsv):
    keys = [1_000_000 + number for number in range(29_806)]
    # 5,008 queries: the first 540 have seven images, the others six; some images answer two queries.
    texts, pairs = [], 0
    for number in range(5008):
        size = 7 if number < 540 else 6
        own = [keys[(pairs + each) % len(keys)] for each in range(size)]
        pairs += size
        texts.append({"text_id": 8000 + number, "text": f"高级感托特包 {number}", "image_ids": own})
    assert pairs == 30_588
    folder.fill(muge(*texts, images=tsv(keys)))
    found = folder.load("muge-valid")
    assert (found.protocol, found.complete) == ("muge-valid", True)
    assert (found.counts.images, found.counts.captions, found.counts.pairs) == (29_806, 5008, 30_588)
    assert found.caption_images[1] == (7, 8, 9, 10, 11, 12, 13)
    assert found.images[29_805].read().endswith(b"1029805")


def test_tsv_reads_older_field_names(folder, linked, tsv):
    folder.fill(muge({"query_id": 1, "query_text": "包", "item_ids": [2, 3, 2]}, images=tsv([1, 2, 3])))
    found = folder.load("muge-valid")
    assert linked(found) == [("包", ["2", "3"])]
    assert [image.key for image in found.images] == ["1", "2", "3"]


def test_tsv_missing_image_makes_the_set_partial(folder, linked, tsv):
    texts = [QUERY | {"image_ids": [2, 9]}, {"text_id": 2, "text": "鞋", "image_ids": [9]}]
    folder.fill(muge(*texts, images=tsv([1, 2, 3])))
    found = folder.load("muge-valid")
    assert linked(found) == [("包", ["2"])]
    assert (found.protocol, found.missing) == ("muge-valid+partial", ("9",))


def test_image_ref_refuses_bad_base64(folder):
    folder.fill(muge(QUERY, images="1\tA*AA\n"))
    with pytest.raises(DatasetError, match="image 1 is no base64"):
        folder.load("muge-valid").images[0].read()


def test_flickr30k_cn_reads_the_authors_file(folder, linked):
    lines = [
        "1009692167#zhm#1 在:p 警车:n 前:f ，:wd 站:vi 着:uzhe 人:n 。:wj",
        "977856234#zhm#1 名:n 为:v John:nx A:nx .:wj Noble:nx 的:ude 设备:n",
        "1009692167#zhm#0 有:vyou 狗:n",
    ]
    file = "flickr30k/seg.flickr30kzhmbosontest.caption.txt"
    folder.fill({FLICKR_IMAGES: CN_KNOWN, file: "\n".join(lines) + "\n"})
    assert linked(folder.load("flickr30k-cn")) == [
        ("在警车前，站着人。", [CN_KNOWN[0]]),
        ("有狗", [CN_KNOWN[0]]),
        ("名为John A.Noble的设备", [CN_KNOWN[1]]),
    ]


def test_flickr30k_cn_prefers_chinese_clips_packaging(folder, linked, tsv):
    texts = [{"text_id": number, "text": f"字 {number}", "image_ids": [5]} for number in range(2)]
    folder.fill({"Flickr30k-CN/test_imgs.tsv": tsv([3, 5]), "Flickr30k-CN/test_texts.jsonl": texts})
    folder.text(FLICKR_CN, "not read")
    assert linked(folder.load("flickr30k-cn")) == [("字 0", ["5"]), ("字 1", ["5"])]


def test_flickr30k_cn_removes_tags_and_notes_it(folder):
    lines = ["一个:m 戴:v 着:u 耳环:n 的:u 男人:n ，:w", "一 个 男 人", "男人在 10:30 出门"]
    text = "image,caption\n" + "".join(f"{CN_KNOWN[0]},{line}\n" for line in lines)
    folder.fill({FLICKR_IMAGES: CN_KNOWN, FLICKR_CN: text + f"{CN_KNOWN[1]},狗\n"})
    found = folder.load("flickr30k-cn")
    assert found.captions == ("一个戴着耳环的男人，", "一 个 男 人", "男人在 10:30 出门", "狗")
    assert found.notes[0] == "part-of-speech tags were removed from 1 caption"


def test_untagged_refuses_partly_tagged_captions():
    with pytest.raises(DatasetError, match="here: 2 of 3 words carry a part-of-speech tag"):
        untagged("一个:m 男人:n 走", where="here")
    assert untagged("穿:v NIKE:nx Air:nx 鞋:n T:x恤:n", where="here") == "穿NIKE Air鞋T:x恤"


def test_token_reads_flickr30k_cna(folder, linked):
    lines = "1007129816#0\t一个男人\n1007129816#1\t戴帽子的男人\n"
    folder.fill({FLICKR_IMAGES: ["1007129816.jpg"], "flickr30k_cna/test/flickr30k_cna_test.txt": lines})
    found = folder.load("flickr30k-cna")
    assert linked(found) == [("一个男人", ["1007129816.jpg"]), ("戴帽子的男人", ["1007129816.jpg"])]
    assert found.id == "flickr30k-cna+partial"


def test_coco_cn_reads_1053_captions(folder, linked):
    halves = {True: "COCO_train2014", False: "COCO_val2014"}
    names = [f"{halves[number % 2 == 0]}_{number:012d}" for number in range(998)] + CN_TEST
    captions = [f"{name}#0\t一只猫 {name}\n" for name in names]
    captions += [f"{name}#1\t又一只 猫 {name}\n" for name in names[:53]]
    folder.fill(coco_cn(names, ["COCO_train2014_000000999999#0\t训练\n", *captions]))
    found = folder.load("coco-cn-1k")
    assert (found.protocol, found.complete, found.counts.captions) == ("coco-cn-1k", True, 1053)
    assert linked(found)[1052] == (f"又一只 猫 {names[52]}", [names[52]])
    assert found.images[1].file.parent.name == "val2014"


def test_coco_cn_translated_captions_are_another_protocol(folder, linked):
    name = CN_TEST[0]
    captions = [f"{name}#zhm#{number} 翻译 {number}\n" for number in range(5)]
    folder.fill(coco_cn(CN_TEST, captions, TRANSLATED))
    found = folder.load("coco-cn-5kcap")
    assert linked(found) == [(f"翻译 {number}", [name]) for number in range(5)]
    folder.refuses("coco-cn-1k", {}, r"coco-cn-1k: no COCO-CN/test_texts\.jsonl nor")


ONE, MANY = "COCO_val2014_000000000001", [f"COCO_val2014_{number:012d}" for number in range(1000)]


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("muge-valid", muge(QUERY | {"image_ids": []}), "answers of the test split are not given out"),
        ("muge-valid", muge(QUERY, QUERY), "line 2: text_id 1 is there twice"),
        ("muge-valid", muge({"text": "包", "image_ids": [1]}), "line 1: has no text_id"),
        ("muge-valid", muge({"text_id": 1, "text": "包"}), "expected 'image_ids'"),
        ("muge-valid", muge(QUERY | {"text": 7}), "'text': got int, expected str"),
        ("muge-valid", muge(QUERY, images="1\tAAAA\n1\tAAAA\n"), "line 2: image 1 is there twice"),
        ("muge-valid", muge(QUERY, images="1\tAAAA\n2\tAAAAA"), "line 2: base64 of 5 characters, expected a"),
        ("muge-valid", muge(QUERY, images="1 AAAA\n"), "line 1: begins b'1 AAAA.n', expected 'id<TAB>base64"),
        ("muge-valid", muge(QUERY, images="1\t\n"), "expected 'id<TAB>base64"),
        (
            "flickr30k-cn",
            {FLICKR_IMAGES: ["1007129816.jpg"], FLICKR_CN: "image,caption\n1007129816.jpg,人\n"},
            r"1009692167\.jpg is not among the 1 listed.* another split",
        ),
        ("coco-cn-1k", coco_cn([ONE], [f"{ONE}\t没有号\n"]), "line 1: got .* expected 'image#0 caption'"),
        ("coco-cn-1k", coco_cn([ONE], [f"{ONE}#0\t好\n"] * 2), f"line 2: {ONE}#0 is there twice"),
        (
            "coco-cn-1k",
            coco_cn(MANY, [f"{name}#{turn}\t猫\n" for name in MANY for turn in range(2)]),
            "coco-cn-1k: got 2,000 captions, expected 1,053: more than",
        ),
    ],
    ids=range(13),
)
def test_load_protocol_refuses_damaged_chinese_sets(folder, name, files, message):
    folder.refuses(name, files, message)
