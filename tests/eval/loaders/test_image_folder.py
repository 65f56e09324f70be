"""Folders and tars of one's own."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from llm2clip.eval.datasets.tar_images import DatasetError
from llm2clip.eval.loaders.image_folder import data_languages, load_data

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
MIXED = {
    "en": [{"captions": ["a red thing", "all red"], "kind": "human_written"}],
    "de": [
        {"captions": ["ein rotes Ding"], "kind": "human_translated"},
        {"captions": ["ganz rot"], "kind": "human_written"},
    ],
}


@pytest.fixture
def tar(tmp_path, tars):
    items = {
        "1": (tars.colour(RED), {"caption": "red", "captions": MIXED}),
        "2": (tars.colour(GREEN), {"captions": {"de": "grün", "fr": ["vert", "un vert"]}}),
        "3": (tars.colour(BLUE), {"caption": ["blue", "so blue"], "names": {"de": ["blau"]}}),
    }
    return tars.write(tmp_path / "mine.tar", items)


def test_load_data_reads_captions_by_language_in_every_form(tar, tars, linked):
    german = load_data(tar, language="de")
    keys = [f"mine.tar#{number}.png" for number in (1, 2, 3)]
    assert linked(german) == [
        ("ein rotes Ding", [keys[0]]),
        ("ganz rot", [keys[0]]),
        ("grün", [keys[1]]),
        ("blau", [keys[2]]),
    ]
    assert german.notes == ("captions by kind: human_translated 1, human_written 1",)
    assert (german.id, german.complete) == ("mine:de", True)
    assert german.images[1].read() == tars.colour(GREEN)
    french = load_data(tar, language="fr", name="colours")
    assert (french.id, french.captions) == ("colours:fr", ("vert", "un vert"))
    assert french.notes == ("2 of 3 images have no caption and stay in the gallery",)
    assert data_languages(tar) == {"de": 3, "en": 1, "fr": 1}


def test_load_data_reads_captions_without_language(tar, linked):
    found = load_data(tar)
    keys = [f"mine.tar#{number}.png" for number in (1, 3)]
    assert linked(found) == [("red", [keys[0]]), ("blue", [keys[1]]), ("so blue", [keys[1]])]


def test_load_data_takes_the_only_language(tmp_path, tars):
    items = {"1": (tars.colour(RED), {"captions": {"de": ["rot"]}}), "2": (tars.colour(BLUE), None)}
    found = load_data(tars.write(tmp_path / "mine.tar", items))
    assert (found.id, found.captions) == ("mine:de", ("rot",))
    items["2"] = (tars.colour(BLUE), {"captions": {"fr": ["bleu"]}})
    with pytest.raises(DatasetError, match=r"or a language to be chosen; languages there: de .*, fr"):
        load_data(tars.write(tmp_path / "mine.tar", items))


def test_load_data_reads_text_and_json_sidecars(tmp_path, tars, linked):
    folder = tmp_path / "holiday"
    (folder / "day1").mkdir(parents=True)
    (folder / "day1" / "a.png").write_bytes(tars.colour(RED))
    (folder / "day1" / "a.txt").write_text("sunset\n")
    (folder / "b.png").write_bytes(tars.colour(BLUE))
    (folder / "b.json").write_text(json.dumps({"caption": "sea"}))
    found = load_data(folder)
    assert sorted(linked(found)) == [("sea", ["b.png"]), ("sunset", ["day1/a.png"])]
    assert found.protocol == "holiday"


def test_load_data_names_the_languages_that_exist(tar):
    with pytest.raises(
        DatasetError, match=r"expected captions in 'zh'; languages there: de \(3 images\), en"
    ):
        load_data(tar, language="zh")


@pytest.mark.parametrize(
    "name",
    ["coco-5k", "COCO-5k", "coco-5k-mbeir", "coco-5k+partial", "xtd10:de", "mine+partial", "a/b", "a:b"],
)
def test_load_data_refuses_a_protocols_name(tar, name):
    with pytest.raises(DatasetError, match="your own data set cannot be called"):
        load_data(tar, name=name)


def test_load_data_refuses_an_empty_caption(tmp_path, tars):
    items = {"1": (tars.colour(RED), {"captions": {"de": ["rot", " "]}})}
    with pytest.raises(DatasetError, match=r"1 captions are empty, expected words: .*1\.png"):
        load_data(tars.write(tmp_path / "x.tar", items), language="de")


def test_load_data_refuses_what_an_index_skips(tmp_path, tars):
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "a.png").write_bytes(tars.colour(RED))
    (folder / "a.json").write_text('{"caption": "red"')
    with pytest.raises(DatasetError, match=r"a\.png: metadata left out.*expected whole images"):
        load_data(folder)
    (folder / "a.json").unlink()
    with pytest.raises(DatasetError, match="1 images, expected captions without a language"):
        load_data(folder)
    (folder / "a.png").unlink()
    with pytest.raises(DatasetError, match="no images"):
        load_data(folder)
    with pytest.raises(DatasetError, match="no such file or folder"):
        load_data(tmp_path / "nothing")


def test_load_data_refuses_a_tar_cut_off(tar):
    tar.write_bytes(tar.read_bytes()[:3000])
    with pytest.raises(DatasetError, match="cannot be read after"):
        load_data(tar)


FLICKR8K = Path(__file__).resolve().parents[4] / "shared" / "data" / "flickr8k" / "val.tar"


@pytest.mark.skipif(not FLICKR8K.exists(), reason="the sample of Flickr8k is not on this machine")
def test_load_data_reads_flickr8k_in_fourteen_languages():
    languages = data_languages(FLICKR8K)
    assert len(languages) == 14
    assert languages["zh"] == 1000
    found = load_data(FLICKR8K, language="de", name="flickr8k-val")
    assert (found.counts.images, found.counts.captions) == (1000, 5640)


def test_load_data_refuses_blank_and_notes_orphan_sidecars(tmp_path, tars):
    folder = tmp_path / "x"
    (folder / "day").mkdir(parents=True)
    for name in ("a.png", "day/b.jpg", "c.d.png"):
        (folder / name).write_bytes(tars.colour(RED))
    for name, text in (
        ("a.txt", "red"),
        ("day/b.txt", "too"),
        ("day/lost.txt", "gone"),
        ("c.d.txt", "dotted"),
    ):
        (folder / name).write_text(text)
    (folder / ".hidden.txt").write_text("x")
    (folder / "lost.json").write_text("{}")
    found = load_data(folder)
    assert len(found.captions) == 3
    assert found.notes == (
        "2 caption files have no image of their name, which are not asked: lost.json, day/lost.txt",
    )
    for blank in ("", " \n"):
        (folder / "day/b.txt").write_text(blank)
        with pytest.raises(
            DatasetError, match=r"1 captions are empty, expected words: day/b\.jpg\. Write them"
        ):
            load_data(folder)
    (folder / "day/b.json").write_text('{"caption": "from elsewhere"}')
    assert len(load_data(folder).captions) == 3
    (folder / "a.json").write_text('{"caption": ""}')
    (folder / "a.txt").unlink()
    with pytest.raises(DatasetError, match=r"expected words: x, a\.png|expected words: .*a\.png"):
        load_data(folder)


def test_load_data_checks_sidecars_in_tars(tmp_path, tars):
    def write(*files):
        with tarfile.open(tmp_path / "y.tar", "w") as archive:
            for name, content in files:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return tmp_path / "y.tar"

    image = tars.colour(RED)
    found = load_data(write(("1.png", image), ("1.txt", b"red"), ("2.txt", b"lost")))
    assert found.notes == ("1 caption files have no image of their name, which are not asked: 2.txt",)
    with pytest.raises(DatasetError, match=r"1 captions are empty, expected words: .*2\.png"):
        load_data(write(("1.png", image), ("1.txt", b"red"), ("2.png", image), ("2.txt", b"")))
