"""The ``llm2clip-index`` command, from its arguments to its output."""

import io
import json
import os
import struct
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from PIL import Image
from typer.testing import CliRunner

from llm2clip.encoders import FakeEncoder, list_encoders
from llm2clip.indexer import build_index, cli
from llm2clip.indexer.commands import session as choosing
from llm2clip.indexer.commands.encoder_table import table
from llm2clip.indexer.core.index_paths import current_index, default_index_path, sample_index_path

from .material import encoded, flip

pytestmark = pytest.mark.usefixtures("loaded")
run = CliRunner()
DRIVER = os.path.join(os.path.dirname(__file__), "driver.py")


def cards(*, available):
    """The built-in encoders as they are where all of them, or none but nano, are on the machine."""
    return [replace(card, available=available or card.name == "nano") for card in list_encoders()]


@pytest.fixture
def downloaded(monkeypatch):
    known = cards(available=True)
    monkeypatch.setattr("llm2clip.encoders.list_encoders", lambda: known)


def test_build_prints_index_and_search_command(photos, loaded):
    done = run.invoke(cli.app, ["build", str(photos), "--encoder", "clip-vit-b-32"])
    other = (
        "note: this is not the published clip-vit-b-32: got family fake, expected clip; vectors of length 16"
    )
    assert (done.exit_code, done.stderr.startswith(other), done.stderr.count("\n")) == (0, True, 1)
    indexed, index, search = done.stdout.splitlines()
    assert indexed.startswith("Indexed 30 images in ")
    assert index == f"Index:  {default_index_path(photos)}"
    assert search == 'Search: llm2clip-search "a red bicycle in the rain"'
    assert current_index() == default_index_path(photos)
    assert loaded == ["clip-vit-b-32"]
    again = run.invoke(cli.app, ["build", str(photos)])
    assert again.stdout.splitlines()[0] == "Up to date: 30 images, nothing has changed."
    assert again.stderr == ""
    assert loaded == ["clip-vit-b-32"] * 2


def test_build_lists_unreadable_images(photos, tmp_path):
    for number in range(25):
        (photos / f"bad{number:02d}\x1b[31m.jpg").write_bytes(b"x")
    done = run.invoke(cli.app, ["build", str(photos), "--encoder", "x", "--index", str(tmp_path / "i")])
    lines = done.stdout.splitlines()
    assert lines[1] == "25 images could not be read:"
    assert lines[2].startswith("  bad00\\x1b[31m.jpg: ")
    assert lines[22] == f"  and 5 more: llm2clip-index info --errors --index {tmp_path}/i"
    errors = run.invoke(cli.app, ["info", "--errors"]).stdout.splitlines()
    assert len(errors) == 25
    assert errors[24].startswith("bad24\\x1b[31m.jpg\t")
    as_json = run.invoke(cli.app, ["info", "--errors", "--json"]).stdout.splitlines()
    assert json.loads(as_json[0])["key"] == "bad00\x1b[31m.jpg"


def test_build_without_an_encoder_lists_the_recommended(photos, loaded, downloaded):
    done = run.invoke(cli.app, ["build", str(photos)])
    assert (done.exit_code, done.stdout, loaded) == (2, "", [])
    assert done.stderr.startswith(
        "error: no encoder was named: use --encoder with a name or a folder, or set\nLLM2CLIP_ENCODER. Recommended:\n"
    )
    assert max(map(len, done.stderr.splitlines())) < 80
    said = " ".join(done.stderr.split())
    for card in [card for card in list_encoders() if card.recommended]:
        assert f": {card.name} {card.summary} {card.size}, {card.quality}; " in said
        assert card.download in said
    assert not default_index_path(photos).exists()


def test_build_takes_the_encoder_from_the_environment(photos, shards, monkeypatch, loaded):
    monkeypatch.setenv("LLM2CLIP_ENCODER", "from-environment")
    assert run.invoke(cli.app, ["build", str(photos)]).exit_code == 0
    assert run.invoke(cli.app, ["build", str(shards), "--encoder", "named"]).exit_code == 0
    monkeypatch.setenv("LLM2CLIP_ENCODER", "another")
    assert run.invoke(cli.app, ["build", str(photos)]).exit_code == 0
    assert loaded == ["from-environment", "named", "from-environment"]


def test_build_without_an_encoder_uses_nano_where_no_other_is(photos, loaded, monkeypatch):
    monkeypatch.setattr("llm2clip.encoders.list_encoders", lambda: cards(available=False))
    done = run.invoke(cli.app, ["build", str(photos)])
    best = max(list_encoders(), key=lambda card: card.recommended).name
    note = f"note: using nano, the small encoder that ships with this package; {best} finds more: --encoder NAME\n"
    assert (done.exit_code, done.stderr, loaded) == (0, note, ["nano"])
    named = run.invoke(cli.app, ["build", str(photos), "--encoder", "nano"])
    assert (named.exit_code, named.stderr) == (0, "")


def test_build_of_the_sample_uses_nano(sample, monkeypatch, loaded):
    monkeypatch.setenv("LLM2CLIP_ENCODER", "for-photographs")
    done = run.invoke(cli.app, ["build", "sample:"])
    assert (done.exit_code, done.stderr, loaded) == (0, "", ["nano"])
    assert done.stdout.splitlines()[1:] == [
        f"Index:  {sample_index_path()}",
        'Search: llm2clip-search --index sample: "snowy mountains"',
    ]
    assert current_index() is None
    assert "5" in run.invoke(cli.app, ["info", "--index", "sample:"]).stdout


@pytest.mark.parametrize(
    ("answers", "chosen"),
    [
        (["7"], "clip-vit-b-32"),
        (["clip-vit-l-14\n"], "clip-vit-l-14"),
        (["0", "10", "", "nonsense", "1"], "nano"),
    ],
)
def test_choose_encoder_asks_on_a_terminal(tmp_path, answers, chosen, capsys, downloaded):
    remaining = iter(answers)
    assert choosing.choose_encoder("p", tmp_path, told=None, ask=lambda _: next(remaining)) == chosen
    asked = capsys.readouterr().err
    assert asked.startswith("Choose an encoder:\n  1  many languages: nano")
    assert asked.count("is not an encoder: expected 1 to") == len(answers) - 1


def test_choose_encoder_accepts_a_folder(tmp_path, monkeypatch, photos, downloaded):
    (tmp_path / "model").mkdir()
    model = f"{tmp_path}/model"
    assert choosing.choose_encoder("p", tmp_path, told=None, ask=lambda _: model) == model
    monkeypatch.chdir(tmp_path)
    assert choosing.source_of("model") == f"{tmp_path}/model"
    assert choosing.source_of("nano") == "nano"
    (tmp_path / "tower.pt").write_bytes(b"")
    assert choosing.source_of("tower.pt") == f"{tmp_path}/tower.pt"
    assert run.invoke(cli.app, ["build", str(photos), "--encoder", "model"]).exit_code == 0
    info = json.loads(run.invoke(cli.app, ["info", "--json"]).stdout)
    assert (info["encoder_source"], info["encoder"]["name"]) == (f"{tmp_path}/model", "model")


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["build", "nowhere", "--encoder", "x"], 1, "error: no such file or folder: nowhere\n"),
        (["info"], 1, "error: no index was built yet: name one with --index PATH, or build one\n"),
        (["verify", "--index", "nowhere"], 1, "error: no index at "),
        (["build"], 2, "got no images to index; name a CORPUS"),
        (["build", "x", "--encode", "y"], 2, "No such option: --encode"),
        (["build", "x", "--batch-size", "0"], 2, "Invalid value for '--batch-size'"),
    ],
)
def test_commands_fail_in_one_line(arguments, status, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run.invoke(cli.app, arguments)
    assert (done.exit_code, done.stdout) == (status, "")
    assert says in done.stderr
    if status == 1:
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("named", [[], ["--encoder", "far-away"]])
def test_build_refuses_an_empty_corpus_before_choosing_an_encoder(tmp_path, loaded, named):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    done = run.invoke(cli.app, ["build", str(tmp_path / "empty"), *named])
    assert (done.exit_code, done.stdout, loaded) == (1, "", [])
    assert done.stderr.startswith(f"error: no images in {tmp_path}/empty: got 1 with .txt; expected endings ")


def test_info_and_verify_say_how_to_build_the_sample_index(loaded):
    for command_name in ("info", "verify"):
        done = run.invoke(cli.app, [command_name, "--index", "sample:"])
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr == (
            "error: the index of the sample images is not built yet: build it with  llm2clip-index build sample:\n"
        )


def test_build_keeps_the_sample_index_for_the_sample(photos, sample, tmp_path, monkeypatch, loaded):
    monkeypatch.chdir(tmp_path)
    refused = run.invoke(cli.app, ["build", str(photos), "--index", "sample:", "--encoder", "x"])
    assert (refused.exit_code, refused.stdout, loaded) == (1, "", [])
    assert refused.stderr == (
        f"error: sample: is the index of the sample images, got the corpus {photos}: "
        "choose a folder with --index\n"
    )
    done = run.invoke(cli.app, ["build", "sample:", "--index", "sample:"])
    assert f"Index:  {sample_index_path()}" in done.stdout
    assert not (tmp_path / "sample:").exists()


def test_build_replaces_an_index_of_other_images_only_with_overwrite(photos, shards, tmp_path):
    place = ["--index", str(tmp_path / "i")]
    assert run.invoke(cli.app, ["build", str(photos), "--encoder", "x", *place]).exit_code == 0
    refused = run.invoke(cli.app, ["build", str(shards), *place])
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert f"holds an index of {photos}, got {shards}" in refused.stderr
    refused = run.invoke(cli.app, ["build", str(photos), "--encoder", "y", *place])
    assert "was built with encoder 'x' (dim 16), got 'y' (dim 16)" in refused.stderr
    done = run.invoke(cli.app, ["build", str(shards), "--encoder", "y", "--overwrite", "--json", *place])
    report = json.loads(done.stdout)
    assert (report["items"], report["encoder"], report["up_to_date"]) == (5, "y", False)


def test_build_prints_index_option_where_needed(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("LLM2CLIP_INDEX", "elsewhere")
    done = run.invoke(
        cli.app, ["build", str(photos), "--encoder", "x", "--index", str(tmp_path / "my index")]
    )
    assert done.stdout.splitlines()[-1] == (
        f"Search: llm2clip-search --index '{tmp_path}/my index' \"a red bicycle in the rain\""
    )


def test_info_and_verify(photos):
    run.invoke(cli.app, ["build", str(photos), "--encoder", "x"])
    shown = run.invoke(cli.app, ["info"]).stdout
    assert "images    30\n" in shown
    assert "encoder   x (weights " in shown
    assert f"corpus    {photos} in {photos}\n" in shown
    verified = run.invoke(cli.app, ["verify"])
    said = f"{default_index_path(photos)} is intact: 4 files, 30 images\n"
    assert (verified.exit_code, verified.stdout) == (0, said)
    vectors = default_index_path(photos) / "vectors-00001-00000.npy"
    flip(vectors, -1)
    verified = run.invoke(cli.app, ["verify", "--json"])
    assert verified.exit_code == 1
    problem = f"{vectors.name} was altered: its checksum does not fit"
    assert json.loads(verified.stdout)["problems"][0] == problem


def test_encoders_lists_every_card(loaded):
    lines = run.invoke(cli.app, ["encoders"]).stdout.splitlines()
    cards = list_encoders()
    names = [line.split()[0] for line in lines if line.startswith("  ") and not line.startswith("   ")]
    assert names == [card.name for card in cards]
    line = next(line for line in lines if line.startswith("  llm2clip-openai-l-14-336 "))
    shown = "en+ 8.1G 17.3GB 1.2GB + 16.1GB 1280 336 507 82.3 - no"
    assert line.split()[1:] == shown.split()
    assert "  llm2clip-llama3.2-1b-eva02-l-14-336 " in "\n".join(lines)
    assert any("~81.3" in line for line in lines)
    shown_json = json.loads(run.invoke(cli.app, ["encoders", "--json"]).stdout)
    assert [card["name"] for card in shown_json] == names
    assert shown_json[0]["available"] is True


def test_build_shows_progress_on_a_terminal(photos, tmp_path):
    """On a terminal the bar is drawn on standard error; results stay on standard output."""
    pty = pytest.importorskip("pty")
    primary, secondary = pty.openpty()
    arguments = ["build", str(photos), "--index", str(tmp_path / "i"), "--encoder", "fake16"]
    process = subprocess.Popen(
        [sys.executable, DRIVER, "everywhere a little", *arguments, "--batch-size", "8"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=secondary,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(secondary)
    drawn = b""
    while True:
        try:
            drawn += os.read(primary, 4096)
        except OSError:
            break
    out, _ = process.communicate()
    os.close(primary)
    assert b"16/30" in drawn
    assert b"images/s" in drawn
    assert "Indexed 30 images in" in out.decode()
    assert b"\x1b" not in out


def odd_exif() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    return buffer.getvalue()


def odd_tiff() -> bytes:
    """A TIFF that says it has 60 numbers per pixel."""
    data = bytearray(encoded((1, 2, 3), format="TIFF"))
    entry = data.index(struct.pack("<HHI", 277, 3, 1))  # SamplesPerPixel, one short
    data[entry + 8 : entry + 10] = struct.pack("<H", 60)
    return bytes(data)


def test_build_keeps_pillow_warnings_off_the_terminal(photos, tmp_path):
    (photos / "odd.jpg").write_bytes(odd_exif())
    (photos / "odd.tif").write_bytes(odd_tiff())
    arguments = ["build", str(photos), "--index", str(tmp_path / "i"), "--encoder", "fake16"]
    done = subprocess.run(
        [sys.executable, DRIVER, "", *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Indexed 31 images in " in done.stdout
    assert "  odd.tif: damaged or truncated TIFF header\n" in done.stdout


def test_indexer_imports_lazily():
    code = "import sys, llm2clip.indexer; print([m for m in ('numpy', 'PIL', 'faiss', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    import llm2clip.indexer

    old = {"BadPicture": "BadImage", "add_pictures": "add_images", "remove_pictures": "remove_images"}
    for name in llm2clip.indexer.__all__:
        assert getattr(llm2clip.indexer, name).__name__ == old.get(name, name)
    with pytest.raises(AttributeError, match=r"attribute.*nothing"):
        llm2clip.indexer.nothing  # noqa: B018


def test_info_ends_quietly_on_a_closed_pipe(photos, tmp_path):
    build_index(photos, tmp_path / "i", encoder=FakeEncoder())
    for number in range(2000):
        (photos / f"bad{number}.jpg").touch()
    build_index(photos, tmp_path / "i", encoder=FakeEncoder())
    command_line = f"{sys.executable} -m llm2clip.indexer.cli info --errors --index {tmp_path}/i"
    done = subprocess.run(
        ["sh", "-c", f"{command_line} | head -1"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "bad0.jpg\tthe file is empty\n"
    assert done.stderr == ""


def test_build_counts_changed_images(photos):
    run.invoke(cli.app, ["build", str(photos), "--encoder", "x"])
    time.sleep(0.01)
    (photos / "000.png").write_bytes(encoded((1, 1, 1)))
    shown = run.invoke(cli.app, ["build", str(photos)]).stdout
    assert shown.startswith("Indexed 30 images: 1 changed, 29 unchanged; in ")


def test_encoder_table_without_a_width_has_all_columns():
    lines = table(list_encoders()).splitlines()
    headings = "languages params download memory dim px text R@1 zh R@1 here"
    assert lines[0].split() == headings.split()
    nano = next(line for line in lines if line.startswith("  nano "))
    assert nano.split()[1:4] == ["mul", "52M", "-"]
    assert "wider" not in "\n".join(lines)


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_encoder_table_fits_a_narrow_terminal(width):
    text = table(list_encoders(), width=width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert "languages" in lines[0].split()
    assert width < 80 or {"R@1", "here"} <= set(lines[0].split())
    said = " ".join(text.split())
    assert "A wider terminal shows params" in said
    assert said.endswith(" as well.")
    for card in list_encoders():
        assert any(line.startswith(f"  {card.name} ") for line in lines)
