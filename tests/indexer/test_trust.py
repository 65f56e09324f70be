"""An index of someone else: searched, but nothing that it names is read, contacted or loaded until it is trusted."""

import hashlib
import json
import shutil
import socket
import threading
from contextlib import suppress

import pytest

from llm2clip.indexer import IndexerError, build_index, open_index, update_index
from llm2clip.indexer.commands.manage import run_trust
from llm2clip.indexer.core import index_paths
from llm2clip.indexer.lifecycle.move import move_sources
from llm2clip.indexer.lifecycle.reencode import reencode_index
from llm2clip.retrieval import Searcher


@pytest.fixture
def index(photos, encoder, tmp_path):
    build_index(photos, tmp_path / "index", encoder=encoder)
    return tmp_path / "index"


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """Another machine: nothing was named there."""

    def go():
        monkeypatch.setattr(index_paths, "_noted", set())
        monkeypatch.setenv("LLM2CLIP_HOME", str(tmp_path / "other"))

    return go


def rewritten(index, **entries):
    """The manifest with other entries and a right checksum, as an attacker writes it."""
    content = json.loads((index / "manifest.json").read_text())
    content = {name: value for name, value in content.items() if name != "checksum"} | entries
    content["checksum"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (index / "manifest.json").write_text(json.dumps(content, indent=2) + "\n")


def test_an_index_built_here_is_read_wherever_it_lies(index, encoder, tmp_path):
    shutil.move(index, tmp_path / "moved")
    index_paths._noted.clear()  # another process of the same user
    with open_index(tmp_path / "moved") as opened:
        assert opened.read_image(0)
    assert update_index(tmp_path / "moved", encoder=encoder).changed_anything is False
    named = (index_paths.data_home() / "named.txt").read_text()
    assert all(len(line) == 64 for line in named.split())


def test_an_index_of_another_machine_is_searched_and_not_read(index, encoder, elsewhere, tmp_path, capsys):
    elsewhere()
    with Searcher.open(index, encoder=encoder) as searcher:
        (hit, *_) = searcher.search("red", k=3)
        with pytest.raises(
            IndexerError, match=r"was not built on this machine, and names the images in .*photos"
        ) as caught:
            searcher.read_image(hit)
    assert str(caught.value).endswith(f"run  llm2clip-index trust {index}")
    with pytest.raises(IndexerError, match="was not built on this machine"):
        update_index(index, encoder=encoder)
    with pytest.raises(IndexerError, match="was not built on this machine"):
        reencode_index(index, tmp_path / "new", encoder=encoder)
    run_trust(index)
    assert "photos (folder)\nEncoder: fake" in capsys.readouterr().out
    with open_index(index) as opened:
        assert opened.read_image(0)
    assert update_index(index, encoder=encoder).changed_anything is False


def test_trust_shows_where_the_sample_lies(encoder, tmp_path, capsys):
    build_index("sample:", tmp_path / "index", encoder=encoder)
    run_trust(tmp_path / "index")
    assert f"Images:  {index_paths.sample_folder()} (sample)\nEncoder: fake" in capsys.readouterr().out


def test_a_moved_source_was_named_by_the_move(index, photos, elsewhere):
    elsewhere()
    shutil.move(photos, photos.parent / "renamed")
    move_sources(index, photos, photos.parent / "renamed")
    with open_index(index) as opened:
        assert opened.read_image(0)


def test_a_forged_root_leads_nowhere(index, photos, encoder):
    source = json.loads((index / "manifest.json").read_text())["sources"][0]
    rewritten(index, sources=[{**source, "root": str(photos.parent)}])
    with open_index(index) as opened, pytest.raises(IndexerError, match="not built on this machine"):
        opened.read_image(0)


@pytest.mark.parametrize("scheme", ["ftp", "http"])
def test_a_forged_root_contacts_nothing(index, encoder, scheme):
    seen = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        place = f"{scheme}://127.0.0.1:{server.getsockname()[1]}/pub"
        source = json.loads((index / "manifest.json").read_text())["sources"][0]
        rewritten(index, sources=[{**source, "root": place}])

        def listen():
            with suppress(TimeoutError):
                seen.append(server.accept())

        thread = threading.Thread(target=listen)
        thread.start()
        with Searcher.open(index, encoder=encoder) as searcher:
            (hit, *_) = searcher.search("red", k=1)
            for act in (lambda: searcher.read_image(hit), lambda: update_index(index, encoder=encoder)):
                with pytest.raises(IndexerError, match=f"names the images in {scheme}://"):
                    act()
        thread.join()
    assert seen == []


@pytest.mark.parametrize("name", ["st:evil/model", "evil/model", "./folder", "open_clip:ViT-B-32/evil"])
def test_a_forged_encoder_is_not_loaded(index, name, monkeypatch):
    rewritten(index, encoder_source=name)
    monkeypatch.setattr("llm2clip.encoders.load_encoder", lambda *_, **__: pytest.fail("loaded"))
    with (
        Searcher.open(index) as searcher,
        pytest.raises(IndexerError, match=f"names the encoder '{name}': name one with"),
    ):
        searcher.search("red")
