import hashlib
import io
import json

import pytest
from rich.console import Console

from llm2clip.eval.datasets.tar_images import DatasetError
from llm2clip.eval.nano_report import report as nano
from llm2clip.eval.nano_report.controls import encoder_folder
from llm2clip.eval.nano_report.data import QUERIES_FILE, FreeQuery, Split
from llm2clip.eval.nano_report.report import NanoOptions, measure_nano
from llm2clip.eval.nano_report.tables import nano_tables

QUERIES = tuple(
    FreeQuery(id=f"en-{number}", language="en", split=split, text=text, accept=frozenset(accept))
    for number, split, text, accept in [
        (1, Split.DEVELOPMENT, "something red", "🍎"),
        (2, Split.TEST, "something yellow", "🍋"),
    ]
)


@pytest.fixture
def world(tmp_path, monkeypatch, gallery_tar, scenes_tar, colours):
    """A sample corpus of one style, evaluation files of another, and an encoder without blocks."""
    shipped = gallery_tar("sample.tar", "noto")
    gallery_tar("openmoji.tar", "openmoji")
    scenes_tar()
    scenes_tar("scenes-openmoji.tar")
    encoder_files = tmp_path / "colours"
    encoder_files.mkdir()
    (encoder_files / "model.safetensors").write_bytes(b"x" * 2_000_000)
    (encoder_files / "tokenizer.json").write_bytes(b"x" * 500_000)
    monkeypatch.setattr(nano.os, "getloadavg", lambda: (0.1, 0.1, 0.1), raising=False)
    monkeypatch.setattr(nano, "sample_shards", lambda: [shipped])
    monkeypatch.setattr(nano, "load_queries", lambda: QUERIES)
    monkeypatch.setattr(nano, "without_blocks", lambda folder, copy: colours.Encoder(bag=True))
    monkeypatch.setattr("llm2clip.encoders.load_encoder", lambda name: colours.Encoder(), raising=False)
    return tmp_path


@pytest.fixture
def measure(world, colours):
    def run(*, folder=None, **options):
        how = NanoOptions(data=world, **options)
        return measure_nano(colours.Encoder(), options=how, folder=folder, progress=lambda line: None)

    return run


@pytest.fixture
def report(measure, world):
    return measure(folder=world / "colours")


def number(report, table, subject, row, metric, *, blocks=True):
    found = [
        one.value
        for one in report.measurements
        if (one.table, one.subject, one.row, one.metric) == (table, subject, row, metric)
        and one.blocks is blocks
    ]
    assert len(found) == 1
    return found[0]


def test_measure_nano_measures_every_part_with_and_without_blocks(report):
    for style in ("noto", "openmoji"):
        for blocks in (True, False):
            assert number(report, "names", style, "en", "R@1", blocks=blocks) == 100
            assert number(report, "names", style, "mean", "R@1", blocks=blocks) == pytest.approx(100 * 5 / 6)
            assert number(report, "queries", style, "all", "test", blocks=blocks) == 1
    for subject in ("scenes", "scenes-openmoji"):
        swapped = ("scenes", subject, "twins: two places swapped", "told apart")
        assert number(report, *swapped) == 100
        assert number(report, *swapped, blocks=False) == 0
    assert number(report, "cost", "size", "weights", "size") == 2
    assert number(report, "cost", "size", "tokenizer", "size") == 0.5
    assert number(report, "cost", "size", "parameters", "size") == 1.5
    assert number(report, "cost", "speed", "query", "median") > 0
    assert number(report, "cost", "speed", "images, from files", "rate") > 0
    assert report.notes == ()


def test_as_json_has_provenance_of_every_number(report):
    content = json.loads(json.dumps(report.as_json()))
    assert set(content["tables"]) == {"names", "queries", "scenes", "cost"}
    for table in content["tables"].values():
        assert table["provenance"]["encoder"]["weights_sha256"] == "0" * 64
        assert table["provenance"]["date"].startswith("20")
        assert {"python", "numpy", "torch", "llm2clip-retrieval"} <= set(table["provenance"]["versions"])
        assert table["rows"]
    first = content["tables"]["queries"]["answers"][0]
    assert (first["id"], first["split"], first["accept"], first["rank"]) == ("en-1", "development", ["🍎"], 1)
    assert first["hits"][0] == "🍎"
    targets = {target["text"]: target for target in content["targets"]}
    assert targets["openmoji, name to image, en, R@1"]["met"] is True
    assert targets["weights"] == targets["weights"] | {"value": 2.0, "bound": 20, "met": True}


def test_measure_nano_records_hashes_of_files(report, world):
    files = {
        "noto": "sample",
        "openmoji": "openmoji",
        "scenes": "scenes",
        "scenes-openmoji": "scenes-openmoji",
    }
    expected = {
        subject: {f"{name}.tar": hashlib.sha256((world / f"{name}.tar").read_bytes()).hexdigest()}
        for subject, name in files.items()
    }
    queries = hashlib.sha256(QUERIES_FILE.read_bytes()).hexdigest()
    assert report.provenance["measured_on"] == expected | {"queries": {"queries.json": queries}}


def test_nano_tables_show_numbers_and_targets(report):
    console = Console(width=120, file=io.StringIO())
    for table in nano_tables(report):
        console.print(table)
    text = console.file.getvalue()
    for expected in (
        "Name to image, noto artwork",
        "Name to image, openmoji artwork",
        "Free-form queries of our own list",
        "twins: two places swapped, told apart",
        "Targets, fixed before training",
    ):
        assert expected in text
    lines = {line.strip().split("  ")[0]: line for line in text.splitlines()}
    assert lines["weights"].split()[-4:] == ["<=", "20", "2.0", "yes"]
    assert lines["all"].split() == ["all"] + ["1", "of", "1"] * 8


def test_measure_nano_leaves_parts_out(measure):
    report = measure(styles=("noto",), scenes=False)
    assert {one.table for one in report.measurements} == {"names", "queries", "cost"}
    assert all(one.blocks for one in report.measurements)
    assert len(report.notes) == 1
    assert "blocks not switched off" in report.notes[0]
    unmet = [target for target in report.as_json()["targets"] if target["met"] is None]
    assert {target["table"] for target in unmet} == {"names", "scenes", "cost"}


def test_measure_nano_notes_a_busy_machine(measure, monkeypatch):
    monkeypatch.setattr(nano.os, "getloadavg", lambda: (99.0, 1.0, 1.0), raising=False)
    report = measure(styles=("noto",), scenes=False, blocks=False)
    assert report.notes == ("speeds are lower bounds: the machine was busy with other work (load 99.0)",)


def test_measure_nano_refuses_a_style_found_nowhere(measure, world):
    with pytest.raises(DatasetError, match=r"fluent\.tar not found in .*llm2clip-train data"):
        measure(styles=("noto", "fluent"))
    (world / "fluent.tar").write_bytes((world / "openmoji.tar").read_bytes())
    with pytest.raises(DatasetError, match=r"fluent\.tar has no image of kind 'emoji', style 'fluent'"):
        measure(styles=("noto", "fluent"))


@pytest.mark.parametrize("styles", [(), ("noto", "noto")])
def test_nano_options_refuse_equal_styles(tmp_path, styles):
    with pytest.raises(ValueError, match="expected different names such as noto, openmoji"):
        NanoOptions(data=tmp_path, styles=styles)


def test_encoder_folder_finds_files(world):
    assert encoder_folder(str(world / "colours")) == world / "colours"
    assert encoder_folder("no such encoder") is None


def test_nano_command_prints_tables_and_writes_json(world, invoke):
    target = world / "new" / "folder" / "out.json"
    result = invoke("nano", "--encoder", world / "colours", "--data", world, "--json", target)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(
        "encoder colours, weights 000000000000, settings 000000000000\nmeasured on noto: "
    )
    sha256 = hashlib.sha256((world / "openmoji.tar").read_bytes()).hexdigest()
    assert f"\nmeasured on openmoji: openmoji.tar {sha256[:12]}\n" in result.stdout
    assert "Targets, fixed before training" in result.stdout
    assert "encoding" in result.stderr
    assert json.loads(target.read_text(encoding="utf-8"))["report"] == "nano"


def test_nano_command_fails_in_one_line(world, invoke, monkeypatch):
    result = invoke("nano", "--styles", "", "--data", world)
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: got styles []")
    assert invoke("nano", "--stiles", "noto").exit_code == 2
    # A file that cannot be written is noticed before anything is measured.
    monkeypatch.setattr(nano, "measure_nano", None)
    (world / "file").write_text("")
    for target in (world, world / "file" / "numbers.json"):
        result = invoke("nano", "--data", world, "--json", target)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(f"error: {world}")
        assert result.stderr.count("\n") == 1


def test_nano_command_prints_tables_if_the_json_file_fails(world, invoke, monkeypatch):
    target, measure = world / "numbers.json", nano.measure_nano

    def spoiling(*arguments, **options):
        report = measure(*arguments, **options)
        target.mkdir()
        return report

    monkeypatch.setattr(nano, "measure_nano", spoiling)
    parts = ("--styles", "noto", "--no-scenes", "--no-blocks")
    result = invoke("nano", "--data", world, *parts, "--json", target)
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (1, f"error: {target}: Is a directory")
    assert "Name to image, noto artwork" in result.stdout
