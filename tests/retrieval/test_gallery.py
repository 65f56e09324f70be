"""The gallery: what it shows, that it is sound HTML, and that nothing from outside gets out of its place."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from llm2clip.indexer import Hit
from llm2clip.retrieval.output.gallery import render_gallery, small_image, thumbnail, write_gallery
from llm2clip.retrieval.output.results import Answer, Query, text_query

from .conftest import hit

VOID = {"meta", "img", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """Elements in order with their attributes and text; fails where tags do not close in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice: {attrs}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self._open[-1:] != ["style"]:
            self.texts.append(data.strip())

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag and attributes.items() <= attrs.items()]


def png(colour: str = "red", size: tuple[int, int] = (32, 16), mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def render(*answers: Answer, read: Callable[[Hit], bytes] = lambda _: png()) -> Page:
    return Page(render_gallery(answers, read_image=read))


def test_gallery_shows_queries_and_hits_in_order():
    first = Answer(
        query=text_query("两只猫"), hits=[hit(1, score=0.8125, caption="two cats"), hit(2, caption="a cat")]
    )
    second = Answer(query=text_query("no such thing"), hits=[])
    page = render(first, second)
    texts = " | ".join(page.texts)
    assert re.search(
        r"两只猫 \| two cats \| 1 \| p1.png \| 0.812 \| a cat \| 2 .* no such thing \| Nothing found", texts
    )
    assert page.all("h2", lang="zh", dir="auto")
    assert page.all("h2", dir="auto", id="h2") == [{"id": "h2", "dir": "auto"}]
    assert len(page.all("section")) == 2
    assert len(page.all("ol")) == 1


def test_gallery_has_alternative_texts_in_their_language():
    giraffe = hit(1, caption="giraffe", metadata={"names": {"zh": "长颈鹿"}})
    page = render(Answer(query=text_query("脖子很长"), hits=[giraffe, hit(2)]))
    assert [(image["alt"], image.get("lang")) for image in page.all("img")] == [
        ("长颈鹿", "zh"),
        ("p2.png", None),
    ]


def test_gallery_shows_a_query_image():
    page = render(
        Answer(query=Query(kind="image", label="/home/me/cat.png", image=png("blue")), hits=[hit()])
    )
    assert [image["alt"] for image in page.all("img")] == ["The query image, cat.png", "p1.png"]
    assert "/home/me" not in " ".join(page.texts)


def test_gallery_of_many_queries_has_a_table_of_contents():
    answers = [Answer(query=text_query(f"query {number} " + "x" * 80), hits=[hit()]) for number in range(3)]
    page = render(*answers)
    targets = [link["href"] for link in page.all("a")]
    assert targets == ["#q1", "#q2", "#q3"]
    assert [section["id"] for section in page.all("section")] == ["q1", "q2", "q3"]
    assert not render(*answers[:2]).all("nav")


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style><script>x</script>",
    "</title><svg onload=alert(1)>",
    "<!-- --><![CDATA[",
    "$title ${sections} $$ %s {0}",
    "&lt;b&gt; &amp; &#60;",
    "javascript:alert(1)",
    "\x00\x1b[2J\u202egnp.exe\ud800",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_gallery_escapes_markup(text: str, tmp_path: Path):
    """The page with hostile texts has the same elements and attribute names as one with harmless texts."""

    def page(words: str) -> tuple[Page, str]:
        answers = [
            Answer(
                query=text_query(words, language=words, gloss=words),
                hits=[
                    hit(
                        1,
                        key=words,
                        uri=words,
                        caption=words,
                        metadata={"names": {words: words}, words: words},
                    ),
                    hit(2, key=words),
                ],
            ),
            Answer(query=Query(kind="image", label=words, image=png()), hits=[hit(1, key=words)]),
            Answer(query=Query(kind="image", label=words, image=words.encode("utf-8", "replace")), hits=[]),
        ]
        written = write_gallery(tmp_path / "g.html", answers, read_image=lambda _: png(), subtitle=words)
        html = written.read_text("utf-8")
        return Page(html), html

    (hostile, html), (harmless, _) = page(text), page("harmless")
    assert [(tag, list(attributes)) for tag, attributes in hostile.elements] == [
        (tag, list(attributes)) for tag, attributes in harmless.elements
    ]
    assert not any(start in html for start in ("<script", "<svg", "<img src=x"))
    assert all(
        not (
            name.startswith("on")
            or (name in ("href", "src") and not str(value).startswith(("#q", "data:image/")))
        )
        for _, attributes in hostile.elements
        for name, value in attributes.items()
    )
    assert len(hostile.texts) == len(harmless.texts)


def test_gallery_fetches_nothing_and_forbids_it():
    html = render_gallery([Answer(query=text_query("q"), hits=[hit()])], read_image=lambda _: png())
    assert not any(way in html for way in ("http:", "https:", "@import", "url(", "src=//"))
    policy = Page(html).all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert str(policy).startswith("default-src 'none'; img-src data:;")
    assert "script-src" not in str(policy)


def test_gallery_serves_light_dark_and_small_screens():
    html = render_gallery([], read_image=lambda _: png())
    assert "prefers-color-scheme: dark" in html
    assert "max-width: 34rem" in html
    assert Page(html).all("meta", name="viewport", content="width=device-width, initial-scale=1")


def decoded(uri: str | None) -> Image.Image:
    assert str(uri).startswith("data:image/webp;base64,")
    return Image.open(io.BytesIO(base64.b64decode(str(uri).partition(",")[2])))


def test_thumbnail_keeps_shape_and_colour():
    small = decoded(thumbnail(png((10, 200, 30), (900, 300))))
    assert small.size == (320, 107)
    assert small.convert("RGB").getpixel((120, 40)) == pytest.approx((10, 200, 30), abs=12)


def test_thumbnail_is_upright_on_white():
    assert min(decoded(thumbnail(png((0, 0, 0, 0), mode="RGBA"))).convert("RGB").getpixel((3, 3))) > 245
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(buffer, "JPEG", exif=exif)
    assert decoded(thumbnail(buffer.getvalue())).size == (20, 40)


@pytest.mark.parametrize("data", [b"", b"no image", png()[:40], png(size=(64, 64))[:90]])
def test_thumbnail_of_no_image_is_none(data: bytes):
    assert thumbnail(data) is None


def test_thumbnail_of_a_huge_image_is_none():
    buffer = io.BytesIO()
    Image.new("1", (9_000, 8_000)).save(buffer, "PNG")
    assert thumbnail(buffer.getvalue()) is None


def test_gallery_names_an_unreadable_image_and_shows_the_rest():
    def read(shown: Hit) -> bytes:
        if shown.id == 1:
            raise FileNotFoundError("gone")
        return png()

    page = render(Answer(query=text_query("q"), hits=[hit(1), hit(2)]), read=read)
    assert page.texts[page.texts.index("This image can no longer be read:") + 1] == "s3://images/p1.png"
    assert len(page.all("img")) == 1


def test_gallery_opens_originals_that_have_a_file_of_their_own(tmp_path: Path):
    original = tmp_path / "é & #1.png"
    original.write_bytes(png())
    uris = [
        str(original),
        str(tmp_path / "gone.png"),
        f"{original}#member.png",
        "https://example.org/a.png",
        "javascript:alert(1)",
        "s3://bucket/a.png",
    ]
    hits = [hit(rank, uri=uri) for rank, uri in enumerate(uris, start=1)]
    page = render(Answer(query=text_query("q"), hits=hits))
    assert [link["href"] for link in page.all("a")] == [original.as_uri(), "https://example.org/a.png"]
    assert len(page.all("img")) == len(hits)


def test_gallery_names_an_image_without_a_caption_once():
    page = render(Answer(query=text_query("q"), hits=[hit(1), hit(2, caption="a dog")]))
    assert page.texts.count("p1.png") == 1
    assert [page.texts.count(text) for text in ("a dog", "p2.png")] == [1, 1]


def test_gallery_shows_confidence_and_number_of_copies():
    shown = hit(1, confidence=0.934, duplicates=(hit(2), hit(3)))
    texts = render(Answer(query=text_query("q"), hits=[shown])).texts
    assert "0.625 · 93%" in texts
    assert "+2" in texts


def test_gallery_reads_an_image_once():
    reads: list[int] = []
    answers = [Answer(query=text_query(word), hits=[hit(1), hit(2)]) for word in ("a", "b")]
    render_gallery(answers, read_image=lambda shown: reads.append(shown.id) or png())
    assert sorted(reads) == [1, 2]


def test_write_gallery_creates_the_folder_and_returns_the_path(tmp_path: Path):
    written = write_gallery(tmp_path / "new" / "g.html", [], read_image=lambda _: b"")
    assert written == tmp_path / "new" / "g.html"
    assert written.read_text("utf-8").startswith("<!DOCTYPE html>")


def test_small_image_decodes_a_large_jpeg_at_a_part_of_its_size(monkeypatch: pytest.MonkeyPatch):
    """Which looks the same; ``Image.draft`` is what Pillow decodes smaller by."""
    shades = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    image, buffer = Image.fromarray(shades).resize((3200, 2400), Image.Resampling.BICUBIC), io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    drafted: list[tuple[int, int]] = []
    draft = JpegImagePlugin.JpegImageFile.draft

    def noted(self: JpegImagePlugin.JpegImageFile, mode: str, size: tuple[int, int]) -> object:
        drafted.append(size)
        return draft(self, mode, size)

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "draft", noted)
    small = small_image(buffer.getvalue(), side=320)
    assert (small.size, drafted[0]) == ((320, 240), (800, 600))
    whole = image.resize((320, 240), Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(small).astype(int) - np.asarray(whole)).mean() < 2
