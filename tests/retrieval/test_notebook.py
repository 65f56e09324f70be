"""What a notebook shows of hits."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

from PIL import Image

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import build_index
from llm2clip.retrieval import Searcher


def test_hits_are_a_list_that_notebooks_show_as_images(tmp_path: Path):
    (tmp_path / "c").mkdir()
    for name, colour in (("a", "red"), ("b", "blue"), ("c", "lime")):
        Image.new("RGB", (40, 30), colour).save(tmp_path / "c" / f"{name}.png")
    (tmp_path / "c/a.txt").write_text('<b>bold</b> & "quoted"')
    build_index(tmp_path / "c", tmp_path / "i", encoder=FakeEncoder())
    with Searcher.open(tmp_path / "i", encoder=FakeEncoder()) as searcher:
        hits = searcher.search("red", k=3)
        (tmp_path / "c/b.png").unlink()
        shown = hits._repr_html_()
        assert len(re.findall('<img src="data:image/webp;base64,', shown)) == 2
        assert "The original is missing." in shown
        assert "&lt;b&gt;bold&lt;/b&gt; &amp; &quot;quoted&quot;" in shown
        assert "<b>bold" not in shown
        copy = pickle.loads(pickle.dumps(hits))
        assert (type(copy), copy) == (list, list(hits))
        assert "sure" in searcher.find("red").hits._repr_html_()
        assert searcher.search("red", where="width > 99")._repr_html_() == "<p>Nothing found.</p>"
