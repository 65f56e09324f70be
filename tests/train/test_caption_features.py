"""Features of captions on disk: right, resumable to the byte, and made of what the manifest says."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from llm2clip.encoders import load_encoder
from llm2clip.encoders.text.llm_text_tower import LlmTextTower, language_source
from llm2clip.train.caption_cache.sources import CaptionError, caption_files, read_captions
from llm2clip.train.caption_cache.store import CaptionFeatures, FeatureError
from llm2clip.train.caption_cache.writer import FeatureOptions, Maker, maker_of, write_features
from llm2clip.train.cli import app
from tests.encoders.published_files import LLAMAS, models, tiny_files

__all__ = ["models", "tiny_files"]  # fixtures

SMALL = FeatureOptions(block=8, shard=40)


def by_letters(texts):
    """A feature that anybody can compute: bytes counted modulo 5, and the length."""
    counts = [[text.encode().count(bytes([96 + i])) for i in range(1, 6)] + [len(text)] for text in texts]
    return np.array(counts, np.float32).reshape(len(texts), 6) / 8


def maker(make=by_letters, **identity) -> Maker:
    return Maker(kind="vectors", identity={"name": "letters", **identity}, dim=6, make=make)


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    path = tmp_path / "captions.jsonl"
    lines = [
        json.dumps({"caption": f"an image of {'abcde'[n % 5] * (n % 17)} number {n}"}) for n in range(150)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def test_read_captions_reads_every_format_with_keys(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes("\ufeffa dog\n\n  \n一只狗  \n\xff".encode("utf-8")[:-2] + b"\xff\n")
    lines = [
        '{"caption": "one"}',
        '{"texts": ["two", "three", ""]}',
        "{",
        '{"x": 1}',
        '{"text": "\\ud800"}',
        "[1]",
    ]
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    with tarfile.open(tmp_path / "c.tar", "w") as tar:
        add(tar, "0.jpg", b"\xff\xd8")
        add(tar, "0.txt", b"several\nlines\n")
        add(tar, "./1.json", b'{"caption": "of json", "text": "not this"}')
    files = caption_files([tmp_path])
    got = [(caption.key, caption.text, caption.problem) for caption in read_captions(files)]
    nothing = "no text in caption or text or captions or texts"
    assert got == [
        ("a.txt:1", "a dog", ""),
        ("a.txt:4", "一只狗", ""),
        ("a.txt:5", "", "not UTF-8 at byte 0"),
        ("b.jsonl:1", "one", ""),
        ("b.jsonl:2#0", "two", ""),
        ("b.jsonl:2#1", "three", ""),
        ("b.jsonl:2#2", "", "empty"),
        ("b.jsonl:3", "", "no JSON"),
        ("b.jsonl:4", "", nothing),
        ("b.jsonl:5", "", "not valid Unicode: a lone surrogate"),
        ("b.jsonl:6", "", nothing),
        ("c.tar#0.txt", "several\nlines", ""),
        ("c.tar#1.json", "of json", ""),
    ]
    assert [caption.text for caption in read_captions(files[2:], field="text")][1] == "not this"


def test_caption_files_refuses_unreadable_sources(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    for path in (tmp_path / "a.txt", tmp_path / "other" / "a.txt", tmp_path / "a.csv"):
        path.write_text("a dog\n")
    for sources, message in (
        ([tmp_path / "none.txt"], "no such file or folder"),
        ([tmp_path / "a.csv"], "is not a supported file type"),
        ([tmp_path / "empty"], "holds no files with captions"),
        ([tmp_path / "a.txt", tmp_path / "other"], "files of one name"),
    ):
        with pytest.raises(CaptionError, match=message):
            caption_files(sources)
    (tmp_path / "cut.tar").write_bytes(b"no tar at all")
    with pytest.raises(CaptionError, match=r"cut\.tar cannot be read to its end"):
        list(read_captions([tmp_path / "cut.tar"]))


def test_write_features_keeps_the_order_of_captions(tmp_path: Path, captions: Path):
    seen = []
    done = write_features([captions], tmp_path / "f", maker=maker(), options=SMALL, tell=seen.append)
    texts = [json.loads(line)["caption"] for line in captions.read_text().splitlines()]
    features = CaptionFeatures(tmp_path / "f")
    assert (done.rows, len(features), features.shape) == (150, 150, (150, 6))
    assert [progress.rows for progress in seen] == [*range(8, 150, 8), 150]
    np.testing.assert_array_equal(features.rows(0, 150), by_letters(texts).astype(np.float16))
    np.testing.assert_array_equal(features.rows(37, 83), by_letters(texts[37:83]).astype(np.float16))
    assert list(features.keys()) == [f"captions.jsonl:{n}" for n in range(1, 151)]
    assert [shard["rows"] for shard in done.shards] == [40, 40, 40, 30]
    features.verify()
    assert write_features([captions], tmp_path / "f", maker=maker(make=None), options=SMALL) == done


@pytest.mark.parametrize("calls", [0, 1, 5, 6, 18])
def test_write_features_resumes_after_a_failure_at_any_block(tmp_path: Path, captions: Path, calls: int):
    left = calls

    def failing(texts):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return by_letters(texts)

    write_features([captions], tmp_path / "whole", maker=maker(), options=SMALL)
    with pytest.raises(KeyboardInterrupt):
        write_features([captions], tmp_path / "f", maker=maker(failing), options=SMALL)
    with pytest.raises(FeatureError, match="is not finished; run the same command again"):
        CaptionFeatures(tmp_path / "f")
    # As if more had been written than the manifest counts.
    number = len(json.loads((tmp_path / "f" / "manifest.json").read_text())["progress"]["shards"])
    for name in (f"features-{number:05d}.npy", f"keys-{number:05d}.txt"):
        with (tmp_path / "f" / name).open("ab") as stream:
            stream.write(b"torn")
    read = []
    go_on = maker(lambda texts: read.append(len(texts)) or by_letters(texts))
    write_features([captions], tmp_path / "f", maker=go_on, options=SMALL)
    assert sum(read) == 150 - 8 * calls
    assert content(tmp_path / "f") == content(tmp_path / "whole")


SLOW = """
import sys, time
sys.path.insert(0, sys.argv[1])
from tests.train.test_caption_features import SMALL, by_letters, maker
from llm2clip.train.caption_cache.writer import write_features
def slow(texts):
    time.sleep(0.02)
    return by_letters(texts)
print("ready", flush=True)
write_features([sys.argv[2]], sys.argv[3], maker=maker(slow), options=SMALL)
"""


def test_write_features_killed_repeatedly_gives_the_same_bytes(tmp_path: Path, captions: Path):
    root = str(Path(__file__).parent.parent.parent)
    write_features([captions], tmp_path / "whole", maker=maker(), options=SMALL)
    kills = 0
    for wait in (0.05, 0.12, 0.09, 60.0):
        command = [sys.executable, "-c", SLOW, root, str(captions), str(tmp_path / "f")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            try:
                assert process.wait(wait) == 0
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                kills += 1
                continue
        break
    assert kills >= 2
    assert content(tmp_path / "f") == content(tmp_path / "whole")


def test_write_features_counts_and_names_unreadable_captions(tmp_path: Path):
    lines = ['{"caption": "a"}', "{", '{"caption": "b"}'] * 12
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    done = write_features([tmp_path / "c.jsonl"], tmp_path / "f", maker=maker(), options=SMALL)
    assert (done.rows, done.left_out, done.reasons[0]) == (24, 12, "c.jsonl:2: no JSON")
    assert list(CaptionFeatures(tmp_path / "f").keys())[:3] == ["c.jsonl:1", "c.jsonl:3", "c.jsonl:4"]


def test_write_features_refuses_another_source_or_maker(tmp_path: Path, captions: Path):
    def stop(texts):
        raise KeyboardInterrupt

    calls = iter([by_letters, by_letters, stop])
    with pytest.raises(KeyboardInterrupt):
        write_features(
            [captions], tmp_path / "f", maker=maker(lambda texts: next(calls)(texts)), options=SMALL
        )
    with pytest.raises(
        FeatureError, match=r"has features of other inputs or settings \(different: made_by\)"
    ):
        write_features([captions], tmp_path / "f", maker=maker(version=2), options=SMALL)
    captions.write_text(captions.read_text().replace('number 3"', 'number 4"'))
    with pytest.raises(CaptionError, match="the first 16 captions are not those whose features are there"):
        write_features([captions], tmp_path / "f", maker=maker(), options=SMALL)
    captions.write_text("{}")
    with pytest.raises(FeatureError, match=r"different: sources"):
        write_features([captions], tmp_path / "f", maker=maker(), options=SMALL)


def test_caption_features_verify_finds_damage(tmp_path: Path, captions: Path):
    write_features([captions], tmp_path / "f", maker=maker(), options=SMALL)
    file = tmp_path / "f" / "features-00001.npy"
    whole = file.read_bytes()
    file.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
    with pytest.raises(FeatureError, match=r"features-00001\.npy is damaged"):
        CaptionFeatures(tmp_path / "f").verify()
    file.write_bytes(whole[:-1])
    with pytest.raises(FeatureError, match=r"missing or damaged: expected 608 bytes"):
        CaptionFeatures(tmp_path / "f")
    (tmp_path / "f" / "manifest.json").write_text("{}")
    with pytest.raises(FeatureError, match="cannot be read as a manifest"):
        CaptionFeatures(tmp_path / "f")


def test_write_features_refuses_values_beyond_float16(tmp_path: Path, captions: Path):
    huge = maker(lambda texts: by_letters(texts) * 1e6)
    with pytest.raises(FeatureError, match="letters gave features that float16 cannot hold"):
        write_features([captions], tmp_path / "f", maker=huge, options=SMALL)


def test_write_features_refuses_a_second_writer(tmp_path: Path, captions: Path):
    def other(texts):
        with pytest.raises(FeatureError, match="another process writes to"):
            write_features([captions], tmp_path / "f", maker=maker(), options=SMALL)
        return by_letters(texts)

    write_features([captions], tmp_path / "f", maker=maker(other), options=SMALL)


@pytest.mark.parametrize("name", ["tiny-openai", "tiny-8b-cc"])
@pytest.mark.usefixtures("models")
def test_write_features_stores_states_for_the_adapter(name: str, tmp_path: Path):
    texts = ["a dog", "two children stand beside a boat", "一只狗"]
    (tmp_path / "c.txt").write_text("\n".join(texts))
    encoder = load_encoder(name, device="cpu")
    made = maker_of(encoder)
    write_features([tmp_path / "c.txt"], tmp_path / "f", maker=made)
    features = CaptionFeatures(tmp_path / "f")
    assert features.kind == "states"
    assert features.made_by["name"] == "tiny-8b-cc"
    assert features.made_by["held_as"] in ("bfloat16", "float32")
    tower = load_encoder("tiny-openai", device="cpu")
    got = tower.encode_features(features.rows(0, 3).astype(np.float32))
    np.testing.assert_allclose((got * tower.encode_texts(texts)).sum(1), 1, atol=1e-5)


def test_features_command_takes_a_language_model_folder(tmp_path: Path):
    (tmp_path / "c.txt").write_text("a dog\nein Hund\n")
    folder = LLAMAS["tiny-1b-cc"] / "model"
    command = ["features", str(tmp_path / "c.txt"), "--out", str(tmp_path / "f"), "--encoder", str(folder)]
    done = CliRunner().invoke(app, [*command, "--device", "cpu", "--dtype", "float32"])
    assert done.exit_code == 0, done.output
    assert "2 captions as states of model, dimension 48" in done.stdout
    side = LlmTextTower(language_source(folder), choice="float32", device=torch.device("cpu"))
    expected = side.pooled(*side.reader.batch(["a dog", "ein Hund"]))
    np.testing.assert_allclose(CaptionFeatures(tmp_path / "f").rows(0, 2), expected, atol=1e-3, rtol=1e-3)


def test_features_command_writes_and_reports(tmp_path: Path):
    (tmp_path / "c.txt").write_text("a red fruit\nein Hund\n")
    command = [sys.executable, "-m", "llm2clip.train.cli", "features", str(tmp_path / "c.txt")]
    command += ["--out", str(tmp_path / "f"), "--encoder", "nano", "--device", "cpu", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'f'}: 2 captions as states of nano, dimension 384\n"
    nano = load_encoder("nano", device="cpu")
    vectors = nano.encode_features(CaptionFeatures(tmp_path / "f").rows(0, 2).astype(np.float32))
    expected = nano.encode_texts(["a red fruit", "ein Hund"])
    np.testing.assert_allclose((vectors * expected).sum(1), 1, atol=1e-5)
    wrong = CliRunner().invoke(app, [*command[3:], "--dtype", "float64"])
    assert (wrong.exit_code, wrong.stdout) == (1, "")
    assert wrong.stderr.startswith("error: unknown dtype 'float64'")
