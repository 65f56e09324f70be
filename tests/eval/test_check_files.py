"""``llm2clip-eval prepare``: what it says is there, missing, right and wrong."""

import base64
import hashlib
import io
import json
import socket

import pytest
from PIL import Image

from llm2clip.eval.datasets.protocols import protocol_ids
from llm2clip.eval.datasets.tar_images import DatasetError
from llm2clip.eval.loaders.check_files import as_text, prepare, summary

JPEG = b"\xff\xd8\xff\xe0"


@pytest.fixture(scope="module")
def urban(tmp_path_factory):
    """Urban1k, whole; whoever changes it changes it back."""
    root = tmp_path_factory.mktemp("data")
    for folder, ending, content in (("image", "jpg", JPEG), ("caption", "txt", b"A street.\n")):
        (root / "Urban1k" / folder).mkdir(parents=True)
        for number in range(1, 1001):
            (root / "Urban1k" / folder / f"{number}.{ending}").write_bytes(content)
    return root


def test_prepare_hashes_the_ids_of_a_complete_set(urban, invoke):
    report = prepare("urban1k", data=urban)
    (only,) = report.sets
    assert (report.complete, only.state, only.counts.captions) == (True, "complete", 1000)
    names = "".join(sorted(f"{number}.jpg\n" for number in range(1, 1001)))
    assert only.image_ids_sha256 == hashlib.sha256(names.encode()).hexdigest()
    answer = invoke("prepare", "urban1k", "--data-folder", urban)
    assert answer.exit_code == 0
    assert "complete  urban1k: 1,000 images, 1,000 captions, 1,000 pairs" in answer.output
    assert (
        json.loads(invoke("prepare", "urban1k", "--data-folder", urban, "--json").output)["complete"] is True
    )


def test_prepare_of_a_partial_set_has_status_1(urban, invoke):
    seventh = urban / "Urban1k/image/7.jpg"
    seventh.unlink()
    try:
        answer = invoke("prepare", "urban1k", "--data-folder", urban)
        report = prepare("urban1k", data=urban)
    finally:
        seventh.write_bytes(JPEG)
    assert answer.exit_code == 1
    assert "partial   urban1k+partial: 999 images" in answer.output
    assert "1 of 1,000 images missing: 7.jpg" in answer.output
    # The ids are those that the annotations name, whether or not the images are there.
    assert report.sets[0].image_ids_sha256 == report.protocol.image_ids_sha256


def test_prepare_decodes_images_on_request(tmp_path, invoke):
    (tmp_path / "MUGE").mkdir()
    stream = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(stream, "JPEG")
    contents = {"1": stream.getvalue(), "2": stream.getvalue()[:-20], "3": b"nothing"}
    lines = (f"{key}\t{base64.b64encode(content).decode()}\n" for key, content in contents.items())
    (tmp_path / "MUGE/valid_imgs.tsv").write_text("".join(lines))
    text = {"text_id": 1, "text": "包", "image_ids": [1, 2, 3]}
    (tmp_path / "MUGE/valid_texts.jsonl").write_text(json.dumps(text) + "\n")
    assert prepare("muge-valid", data=tmp_path).sets[0].state == "partial"
    (only,) = prepare("muge-valid", data=tmp_path, images=True).sets
    assert only.state == "unusable"
    assert only.notes[-1] == "2 images cannot be decoded: 2 (truncated file), 3 (not an image)"
    answer = invoke("prepare", "muge-valid", "--data-folder", tmp_path, "--images")
    assert "3 (not an image)" in answer.output


def test_prepare_lists_publishers_and_licences_of_missing_files(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    before = sorted(tmp_path.iterdir())
    text = "\n".join(as_text(prepare("coco-cn-1k", data=tmp_path)))
    captions = "coco-cn/coco-cn-version1805v1.1/imageid.human-written-caption.txt"
    for expected in (
        "1,000 images, 1,053 captions",
        f"MISSING   COCO-CN/test_texts.jsonl or {captions}",
        "Hugging Face dataset AIMClab/COCO-CN",
        "licence  captions for research",
        "nothing is downloaded",
        "absent    coco-cn-1k",
    ):
        assert expected in text
    assert sorted(tmp_path.iterdir()) == before


def test_prepare_needs_files_only_beside_their_captions(tmp_path):
    def paths():
        return [path for need in prepare("coco-cn-1k", data=tmp_path).needs for path in need.paths]

    base = "coco-cn/coco-cn-version1805v1.1"
    assert f"{base}/coco-cn_test.txt" not in paths()
    file = tmp_path / base / "imageid.human-written-caption.txt"
    file.parent.mkdir(parents=True)
    file.write_text("")
    assert f"{base}/coco-cn_test.txt" in paths()


def test_prepare_reports_a_damaged_file(tmp_path, invoke):
    (tmp_path / "coco/val2014").mkdir(parents=True)
    (tmp_path / "coco/coco_test_karpathy.json").write_text('{"images": [')
    report = prepare("coco-5k", data=tmp_path)
    assert report.sets[0].state == "unusable"
    assert "damaged or cut off" in report.sets[0].notes[0]
    assert invoke("prepare", "coco-5k", "--data-folder", tmp_path).exit_code == 1


def test_prepare_checks_languages_one_by_one(tmp_path):
    report = prepare("xtd10", data=tmp_path)
    assert [each.language for each in report.sets] == list(report.protocol.languages)
    assert any("test_1kcaptions_jp.txt" in path for need in report.needs for path in need.paths)
    for name, language in (("xtd10", "ja"), ("xtd10:ja", None)):
        assert [each.language for each in prepare(name, data=tmp_path, language=language).sets] == ["ja"]
    with pytest.raises(DatasetError, match="xtd10 got language 'nl', expected one of: en"):
        prepare("xtd10", data=tmp_path, language="nl")
    with pytest.raises(DatasetError, match="expected one of: none: it has but one"):
        prepare("urban1k:de", data=tmp_path)


def test_prepare_compares_archives_with_published_hashes(tmp_path):
    archive = tmp_path / "coco" / "val2014.zip"
    archive.parent.mkdir()
    archive.write_bytes(b"not COCO")
    report = prepare("coco-5k", data=tmp_path)
    assert set(report.archives.values()) != {"right"}
    said = report.archives["coco/val2014.zip"]
    assert said.startswith(f"got md5 {hashlib.md5(b'not COCO').hexdigest()}, expected a3d79f5e")
    assert "archive   coco/val2014.zip: got md5" in "\n".join(as_text(report))


def test_prepare_without_a_name_lists_all(urban, invoke):
    listed = {name: there for name, _, there in summary(urban)}
    assert tuple(listed) == protocol_ids()
    assert [name for name, there in listed.items() if there] == ["urban1k"]
    done = invoke("prepare", "--data-folder", urban)
    lines = done.stdout.splitlines()
    assert len(lines) == len(protocol_ids())
    assert f"searched {urban}; llm2clip-eval prepare NAME" in done.stderr
    assert lines[6].split()[:2] == ["present", "urban1k"]


def test_prepare_refuses_an_unknown_name_in_one_line(tmp_path, invoke):
    answer = invoke("prepare", "urban2k", "--data-folder", tmp_path)
    assert (answer.exit_code, answer.stdout) == (1, "")
    assert "did you mean urban1k?" in answer.stderr
