import hashlib
import os
from contextlib import suppress
from pathlib import Path

import pytest

from llm2clip.common.files import atomic_folder, file_sha256, format_bytes, write_atomic, write_output


def test_format_bytes_rounds_to_a_unit():
    sizes = (7, 1_500, 2_000_000, 348_400_000, 3.25e9, 4e12)
    assert [format_bytes(size) for size in sizes] == [
        "7 bytes",
        "1.5 kB",
        "2.0 MB",
        "348 MB",
        "3.2 GB",
        "4.0 TB",
    ]


def test_write_atomic_replaces_the_content(tmp_path: Path):
    path = tmp_path / "a.json"
    write_atomic(path, "old")
    write_atomic(path, "nöw")
    assert path.read_text("utf-8") == "nöw"
    assert os.listdir(tmp_path) == ["a.json"]
    assert file_sha256(path) == hashlib.sha256("nöw".encode()).hexdigest()


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_write_atomic_leaves_the_old_file_on_an_error(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((Path, "write_bytes") if where == "write" else (os, where)), full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"half")
    monkeypatch.undo()
    assert (os.listdir(tmp_path), path.read_bytes()) == (["a.bin"], b"old")


def test_atomic_folder_appears_whole_or_not_at_all(tmp_path: Path):
    with suppress(KeyError), atomic_folder(tmp_path / "x" / "made") as draft:
        (draft / "a").write_text("1")
        raise KeyError
    assert os.listdir(tmp_path / "x") == []
    (tmp_path / "x" / "made").mkdir()
    with atomic_folder(tmp_path / "x" / "made") as draft:
        (draft / "a").write_text("1")
    assert os.listdir(tmp_path / "x") == ["made"]
    assert (tmp_path / "x" / "made" / "a").read_text() == "1"
    with pytest.raises(OSError, match="not empty"), atomic_folder(tmp_path / "x" / "made") as draft:
        pass


def test_write_output_follows_a_link_and_leaves_special_files(tmp_path: Path):
    (tmp_path / "link.html").symlink_to(tmp_path / "kept.html")
    write_output(tmp_path / "link.html", "page")
    assert (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "kept.html").read_text() == "page"
    write_output(tmp_path / "new" / "page.html", b"bytes")
    assert (tmp_path / "new" / "page.html").read_bytes() == b"bytes"
    write_output(Path(os.devnull), "nothing")
    assert not Path(os.devnull).is_file()
    with pytest.raises(IsADirectoryError):
        write_output(tmp_path, "page")
