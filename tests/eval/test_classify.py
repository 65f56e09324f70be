"""The commands classify and captions, from files to printed shares."""

import json

import pytest

from llm2clip.eval.datasets.class_sets import read_class_folders
from llm2clip.eval.datasets.retrieval_set import ImageRef, RetrievalSet
from llm2clip.eval.runner.run import Candidate
from llm2clip.eval.runner.zero_shot_run import ClassTask, measure_captions, measure_classes
from llm2clip.eval.stats.bootstrap import Resampling

FEW = Resampling(times=100, seed=3)


@pytest.fixture
def folder(tmp_path, colours, tars):
    for name, rgb in colours.palette.items():
        (tmp_path / "hues" / name).mkdir(parents=True)
        (tmp_path / "hues" / name / "one.png").write_bytes(tars.colour(rgb))
    return tmp_path / "hues"


def measured(encoder, task, tmp_path):
    candidate = Candidate(label="eye", open=encoder)
    return measure_classes(candidate, task, cache=tmp_path / "vectors", resampling=FEW)


def test_measure_classes_encodes_nothing_again(folder, colours, tmp_path, monkeypatch):
    found = read_class_folders(folder)
    task = ClassTask(protocol="hues", images=found, names=found.folders, templates=("{}", "mostly {}"))
    reports = [measured(colours.Encoder, task, tmp_path)]
    monkeypatch.setattr(colours.Encoder, "_image_batch", None)
    monkeypatch.setattr(colours.Encoder, "_text_batch", None)
    reports.append(measured(colours.Encoder, task, tmp_path))
    first, second = (report.as_json() for report in reports)
    assert first["result"] == second["result"]
    assert (first["result"]["top1"]["value"], first["result"]["classes"]) == (1.0, 6)
    assert first["encoder"]["label"] == "eye"
    assert len(first["encoder"]["weights_sha256"]) == 64
    hashes = {"images_sha256", "names_sha256", "templates_sha256"}
    assert first["conditions"].keys() >= {*hashes, "date", "code", "seed"}
    assert first["conditions"]["seed"] == 3


def test_measure_classes_notes_equal_names(folder, colours, tmp_path):
    found = read_class_folders(folder)
    names = ["red" if name == "green" else name for name in found.folders]
    task = ClassTask(protocol="hues", images=found, names=names, templates=("{}",))
    report = measured(colours.Encoder, task, tmp_path)
    assert report.notes == ("1 names belong to several classes: red",)
    assert report.result.top1.value == pytest.approx(4 / 6)
    # A red image is as near to both; a green one is as far from every name.
    assert report.result.top1_ties.expected == pytest.approx((4 + 1 / 2 + 1 / 6) / 6)


def test_measure_captions_reads_no_images(colours, tmp_path):
    captions = ["red", "very red", "blue", "blue too", "white", "black", "white again"]
    the_set = RetrievalSet(
        protocol="told",
        images=[ImageRef(key=str(number), file=tmp_path / "nowhere") for number in range(4)],
        captions=captions,
        caption_images=[(0,), (0,), (1,), (1,), (2,), (3,), (2,)],
        complete=True,
    )
    candidate = Candidate(label="", open=colours.Encoder)
    report = measure_captions(candidate, the_set, cache=tmp_path / "vectors", resampling=FEW)
    assert (report.result.images, report.result.left_out) == (3, 1)
    assert report.result.mean.value == 1.0
    assert report.task == "told"


def test_classify_command(folder, invoke, tmp_path):
    out = tmp_path / "out" / "r.json"
    done = invoke("classify", folder, "--encoder", "nano", "--cache", tmp_path / "c", "--json", out)
    assert done.exit_code == 0, done.output
    assert "nano on hues: 6 images, 6 classes" in done.output
    written = json.loads(out.read_text("utf-8"))[0]
    assert f"top-1              {100 * written['result']['top1']['value']:5.1f} %" in done.output
    assert written["conditions"]["templates"] == 1


def test_classify_command_names_missing_files(folder, invoke):
    command = ("classify", folder, "--encoder", "nano")
    done = invoke(*command, "--protocol", "imagenet-1k-en")
    assert done.exit_code == 1
    assert "imagenet-1k-en needs --names FILE and --templates FILE. They are not shipped" in done.output
    assert invoke(*command, "--protocol", "imagenet").exit_code == 2
    assert invoke(*command, "--language", "fr").exit_code == 2
    named = folder.rename(folder.with_name("ImageNet-1k-EN"))
    done = invoke("classify", named, "--encoder", "nano")
    assert done.exit_code == 1
    assert "got a folder called 'ImageNet-1k-EN', which is a protocol's name" in done.output


def test_classify_command_measures_a_part_of_imagenet(folder, invoke, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(f"hue {number}" for number in range(6)))
    command = (
        *("--encoder", "nano", "--protocol", "imagenet-1k-en-single"),
        *("--names", tmp_path / "names.txt", "--cache", tmp_path / "c"),
    )
    done = invoke("classify", folder, *command)
    assert done.exit_code == 1
    assert "imagenet-1k-en-single: got the folder black, expected names such as n01440764" in done.output
    for number, own in enumerate(sorted(folder.iterdir())):
        (own / "one.png").rename(own / f"ILSVRC2012_val_{number:08}.png")
        own.rename(folder / f"n{number:08}")
    done = invoke("classify", folder, *command)
    assert done.exit_code == 0, done.output
    assert "nano on imagenet-1k-en-single+partial: 6 images" in done.output


def test_captions_command(invoke, tmp_path, tars):
    place = tmp_path / "own"
    place.mkdir()
    for number, words in enumerate((["a red apple", "an apple"], ["a dog", "one dog"], ["a car", "the car"])):
        (place / f"{number}.png").write_bytes(tars.colour((number, 0, 0)))
        (place / f"{number}.json").write_text(json.dumps({"captions": {"en": words}}))
    done = invoke(
        *("captions", "--encoder", "nano", "--encoder", "again=nano", "--data", place),
        *("--language", "en", "--cache", tmp_path / "c"),
    )
    assert done.exit_code == 0, done.output
    assert "nano on own:en: 3 images with two captions" in done.output
    assert "again on own:en: 3 images with two captions" in done.output
    assert done.output.count("both ways") == 2
