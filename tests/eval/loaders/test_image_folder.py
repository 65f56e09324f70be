"""Folders and tars of one's own."""

import json
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
KEYS = [f"mine.tar#{number}.png" for number in (1, 2, 3)]
EMPTY = "1 caption without words: "


@pytest.fixture
def tar(tmp_path, tars):
    items = {
        "1": (tars.colour(RED), {"caption": "red", "captions": MIXED}),
        "2": (tars.colour(GREEN), {"captions": {"de": "grün", "fr": ["vert", "un vert"]}}),
        "3": (tars.colour(BLUE), {"caption": ["blue", "so blue"], "names": {"de": ["blau"]}}),
    }
    return tars.write(tmp_path / "mine.tar", items)


@pytest.fixture
def own(tmp_path, tars):
    """Write a folder of red images by their names."""

    def write(*images):
        for name in images:
            (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "own" / name).write_bytes(tars.colour(RED))
        return tmp_path / "own"

    return write


def refuses(place, message, **options):
    with pytest.raises(DatasetError, match=message):
        load_data(place, **options)


def test_load_data_reads_captions_by_language_in_every_form(tar, tars, linked):
    german = load_data(tar, language="de")
    words = ("ein rotes Ding", "ganz rot", "grün", "blau")
    assert linked(german) == [(word, [KEYS[n]]) for word, n in zip(words, (0, 0, 1, 2), strict=True)]
    assert german.notes == ("captions by kind: human_translated 1, human_written 1",)
    assert (german.id, german.complete) == ("mine:de", True)
    assert german.images[1].read() == tars.colour(GREEN)
    french = load_data(tar, language="fr", name="colours")
    assert (french.id, french.captions) == ("colours:fr", ("vert", "un vert"))
    assert french.notes == ("2 of 3 images without a caption, kept in the gallery",)
    assert data_languages(tar) == {"de": 3, "en": 1, "fr": 1}
    refuses(tar, r"expected captions in 'zh'; languages there: de \(3 images\), en", language="zh")


def test_load_data_reads_captions_without_language(tar, linked):
    assert linked(load_data(tar)) == [("red", [KEYS[0]]), ("blue", [KEYS[2]]), ("so blue", [KEYS[2]])]


def test_load_data_takes_the_only_language(tmp_path, tars):
    items = {"1": (tars.colour(RED), {"captions": {"de": ["rot"]}}), "2": (tars.colour(BLUE), None)}
    found = load_data(tars.write(tmp_path / "mine.tar", items))
    assert (found.id, found.captions) == ("mine:de", ("rot",))
    items["2"] = (tars.colour(BLUE), {"captions": {"fr": ["bleu"]}})
    mixed = tars.write(tmp_path / "mine.tar", items)
    refuses(mixed, r"or a language to be chosen; languages there: de .*, fr")


def test_load_data_reads_text_and_json_sidecars(own, linked):
    folder = own("day1/a.png", "b.png")
    (folder / "day1" / "a.txt").write_text("sunset\n")
    (folder / "b.json").write_text(json.dumps({"caption": "sea"}))
    found = load_data(folder)
    assert sorted(linked(found)) == [("sea", ["b.png"]), ("sunset", ["day1/a.png"])]
    assert found.protocol == "own"


@pytest.mark.parametrize(
    "name",
    ["coco-5k", "COCO-5k", "coco-5k-mbeir", "coco-5k+partial", "xtd10:de", "mine+partial", "a/b", "a:b"],
)
def test_load_data_refuses_a_protocols_name(tar, name):
    refuses(tar, "your own data set cannot be called", name=name)


def test_load_data_refuses_what_an_index_skips(own, tmp_path):
    folder = own("a.png")
    (folder / "a.json").write_text('{"caption": "red"')
    refuses(folder, r"a\.png: metadata left out.*expected whole images")
    (folder / "a.json").unlink()
    refuses(folder, "1 image and no captions: put NAME.txt beside NAME.jpg")
    (folder / "a.png").unlink()
    refuses(folder, "no images")
    refuses(tmp_path / "nothing", "no such file or folder")


def test_load_data_refuses_a_tar_cut_off(tar):
    tar.write_bytes(tar.read_bytes()[:3000])
    refuses(tar, "cannot be read after")


FLICKR8K = Path(__file__).resolve().parents[4] / "shared" / "data" / "flickr8k" / "val.tar"


@pytest.mark.skipif(not FLICKR8K.exists(), reason="the sample of Flickr8k is not on this machine")
def test_load_data_reads_flickr8k_in_fourteen_languages():
    languages = data_languages(FLICKR8K)
    assert (len(languages), languages["zh"]) == (14, 1000)
    found = load_data(FLICKR8K, language="de", name="flickr8k-val")
    assert (found.counts.images, found.counts.captions) == (1000, 5640)


def test_load_data_refuses_blank_and_notes_orphan_sidecars(own):
    folder = own("a.png", "day/b.jpg", "c.d.png")
    texts = {"a.txt": "red", "day/b.txt": "too", "day/lost.txt": "gone", "c.d.txt": "dotted"}
    for name, text in {**texts, ".hidden.txt": "x", "lost.json": "{}"}.items():
        (folder / name).write_text(text)
    found = load_data(folder)
    assert len(found.captions) == 3
    assert found.notes == (
        "2 caption files without an image of that name, not used: lost.json, day/lost.txt",
    )
    for blank in ("", " \n"):
        (folder / "day/b.txt").write_text(blank)
        refuses(folder, EMPTY + r"day/b\.jpg\. Write them")
    (folder / "day/b.json").write_text('{"caption": "from elsewhere"}')
    assert len(load_data(folder).captions) == 3
    (folder / "a.json").write_text('{"caption": ""}')
    (folder / "a.txt").unlink()
    refuses(folder, EMPTY + r".*a\.png")


def test_load_data_checks_sidecars_in_tars(tmp_path, tars):
    image, place = tars.colour(RED), tmp_path / "y.tar"
    found = load_data(tars.members(place, ("1.png", image), ("1.txt", b"red"), ("2.txt", b"lost")))
    assert found.notes == ("1 caption file without an image of that name, not used: 2.txt",)
    files = (("1.png", image), ("1.txt", b"red"), ("2.png", image), ("2.txt", b""))
    refuses(tars.members(place, *files), EMPTY + r".*2\.png")
    blank = {"1": (image, {"captions": {"de": ["rot", " "]}})}
    refuses(tars.write(place, blank), EMPTY + r".*1\.png", language="de")


def test_load_data_reads_zips_and_tables(tmp_path, tars, linked):
    import zipfile

    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        for name, colour in (("red", RED), ("green", GREEN)):
            archive.writestr(f"{name}.png", tars.colour(colour))
            archive.writestr(f"{name}.txt", f"a {name} thing")
    found = load_data(tmp_path / "mine.zip")
    assert found.id == "mine"
    assert sorted(linked(found)) == [
        ("a green thing", ["mine.zip#green.png"]),
        ("a red thing", ["mine.zip#red.png"]),
    ]
    for _ in range(2):
        assert {image.key: image.read() for image in found.images}["mine.zip#green.png"] == tars.colour(GREEN)


def test_load_data_reads_a_parquet_file(tmp_path, tars):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    columns = {"image": [tars.colour(RED), tars.colour(BLUE)], "text": ["red", "blue"]}
    pq.write_table(pa.table(columns), tmp_path / "mine.parquet")
    found = load_data(tmp_path / "mine.parquet")
    assert (found.id, found.captions) == ("mine", ("red", "blue"))
    assert [image.read() for image in found.images] == columns["image"]
