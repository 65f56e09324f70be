"""The page, driven in headless Chromium as a person uses it."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import build_index
from llm2clip.retrieval import Searcher
from llm2clip.retrieval.ranking.options import SearchOptions
from llm2clip.retrieval.service.search_service import SearchService
from llm2clip.retrieval.service.settings import ServerSettings

from .serving import running_server

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or ""
pytestmark = pytest.mark.skipif(not BROWSER, reason="there is no Chromium on the path")
ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
COLOURS = ["red", "green", "blue", "yellow", "white", "black", "cyan", "magenta"]
AXE = os.environ.get("AXE_CORE", "")
"""Path of axe-core's axe.min.js; the check for accessibility is skipped without."""


class Library:
    """A corpus of two colours side by side in each image, and its server."""

    def __init__(self, folder: Path) -> None:
        self.corpus, self.encoder = folder / "corpus", FakeEncoder()
        for number, left in enumerate(COLOURS):
            image = Image.new("RGB", (160, 80), left)
            image.paste(COLOURS[(number + 3) % len(COLOURS)], (80, 0, 160, 80))
            file = self.corpus / ("2019" if number % 2 else "2020") / f"{left}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file)
        (self.corpus / "2020/broken.png").write_bytes(b"\x89PNG\r\n\x1a\nand no more")
        build_index(self.corpus, folder / "i", encoder=self.encoder)
        self.service = SearchService(folder / "i", self.encoder, ServerSettings())

    def ranked(self, vector: NDArray[Any], *, within: str = "") -> list[str]:
        """Paths below the corpus, best first, by brute force."""
        files = sorted(self.corpus.glob(f"{within or '*'}/*.png"))
        files = [file for file in files if file.stem != "broken"]
        rows = self.encoder.encode_images(files).astype(np.float16).astype(np.float64)
        order = np.argsort(-(rows @ vector).astype(np.float32), kind="stable")
        return [str(files[at]) for at in order]


def _decoded(uri: str) -> bytes:
    return base64.b64decode(uri.partition(",")[2])


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Library, str]]:
    made = Library(tmp_path_factory.mktemp("page"))
    with running_server(made.service) as address:
        yield made, address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=BROWSER, args=ARGUMENTS.split())
        yield opened
        opened.close()


class Driven:
    """A tab with the page in it. ``close`` asserts that nothing failed and no other host was asked."""

    def __init__(self, browser: Any, library: Library, address: str) -> None:
        self.library, self.address = library, address
        self.context = browser.new_context(viewport={"width": 900, "height": 700})
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(10_000)
        self.asked: list[str] = []
        self.problems: list[str] = []
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.on("pageerror", lambda error: self.problems.append(str(error)))
        self.tab.on("console", lambda message: self.problems.append(message.text))

    def open(self, query: str = "") -> None:
        self.tab.goto(f"{self.address}/{query}")
        self.tab.wait_for_selector("#hits li")

    def ask(self, query: str) -> None:
        self.tab.fill("#query", query)
        with self.tab.expect_response(re.compile("/v1/search")):
            self.tab.keyboard.press("Enter")
        self.until("document.getElementById('hits').ariaBusy !== 'true'")

    def until(self, expression: str) -> None:
        """Until an expression is true. Playwright's own way evaluates text in the page, which the page forbids."""
        for _ in range(250):
            if self.tab.evaluate(expression):
                return
            self.tab.wait_for_timeout(20)
        raise AssertionError(f"never true: {expression}")

    def wait_for(self, paths: list[str]) -> None:
        """Until the tiles show these images in this order."""
        shown = "[...document.querySelectorAll('#hits .image')].map((link) => link.dataset.uri)"
        self.until(f"JSON.stringify({shown}) === {json.dumps(json.dumps(paths, separators=(',', ':')))}")

    def sure(self, text: str) -> list[str]:
        """What a search in Python finds above the cut-off of the page."""
        with Searcher.open(self.library.service.path, encoder=self.library.encoder) as searcher:
            page = searcher.find(text, options=SearchOptions(k=60, min_confidence=0.8))
        return [hit.uri for hit in page.hits]

    def texts(self, vector_of: str) -> NDArray[np.float32]:
        return self.library.encoder.encode_texts([vector_of])[0]

    def close(self) -> None:
        self.context.close()
        assert self.problems == []
        assert {url.split("/")[2] for url in self.asked if url.startswith("http")} == {self.address[7:]}


@pytest.fixture
def page(browser: Any, library: tuple[Library, str]) -> Iterator[Driven]:
    driven = Driven(browser, *library)
    yield driven
    driven.close()


def test_page_shows_hits_best_first_and_keeps_the_query_in_its_address(page: Driven):
    page.open()
    assert page.tab.locator("#hits li").count() == len(COLOURS)  # all images, before anything is asked
    page.ask("red")
    assert page.tab.url == f"{page.address}/?q=red"
    sure = page.sure("red")
    page.wait_for(sure)
    page.tab.click("#weaker")
    expected = page.library.ranked(page.texts("red"))
    assert sure != expected
    page.wait_for(expected)
    page.tab.reload()
    page.wait_for(expected)
    page.tab.wait_for_selector("#hits li:nth-child(8) .image.shown")


def test_page_is_driven_by_keys(page: Driven):
    page.open("?q=red&weaker=1")
    ranked = page.library.ranked(page.texts("red"))
    keys = page.tab.keyboard
    page.tab.focus("#query")
    keys.press("ArrowDown")
    keys.press("ArrowRight")
    focused = "document.activeElement.dataset.uri"
    assert page.tab.evaluate(focused) == ranked[1]
    keys.press("Space")
    keys.press("ArrowRight")
    keys.press("ArrowRight")
    keys.press("Shift+Space")
    assert page.tab.inner_text("#count") == "3 selected"
    keys.press("Enter")
    assert page.tab.locator("#viewer").get_attribute("open") is not None
    keys.press("ArrowLeft")
    page.until(f"document.getElementById('facts').textContent.includes('{ranked[2]}')")
    keys.press("w")
    page.until("document.getElementById('hint').textContent.includes('no grid of features')")
    keys.press("Enter")
    page.problems = [problem for problem in page.problems if "400 (Bad Request)" not in problem]
    page.until(f"{focused} === '{ranked[2]}'")
    with page.tab.expect_response(re.compile("/v1/search")):
        keys.press("m")
    page.wait_for(page.library.ranked(page.library.encoder.encode_images([Path(ranked[2])])[0]))
    keys.press("/")
    assert page.tab.evaluate("document.activeElement.id") == "query"


def test_page_adds_and_subtracts_images(page: Driven):
    page.open("?q=red&weaker=1")
    first = page.library.ranked(page.texts("red"))[0]
    tile = page.tab.locator("#hits li").first
    tile.hover()
    tile.locator("[data-do=minus]").click()
    image = page.library.encoder.encode_images([Path(first)])[0].astype(np.float16).astype(np.float32)
    page.wait_for(page.library.ranked(page.texts("red") - image / np.linalg.norm(image)))
    file = page.library.corpus / "2020/blue.png"
    page.tab.fill("#query", "")
    page.tab.set_input_files("#file", str(file))
    page.wait_for(page.library.ranked(page.library.encoder.encode_images([file])[0]))
    page.tab.click("#terms button")
    page.tab.wait_for_selector("#terms:empty", state="attached")
    assert page.tab.input_value("#query") == ""


def test_page_searches_for_a_box_on_an_image_and_shares_it(page: Driven):
    page.open()
    page.tab.click("#hits li:first-child .image")
    page.until("document.getElementById('large').naturalWidth > 0")
    box = page.tab.locator("#large").bounding_box()
    centre = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    with page.tab.expect_request(re.compile("/v1/search")) as sent:
        page.tab.mouse.move(centre[0] + 20, centre[1] - 30)
        page.tab.mouse.down()
        page.tab.mouse.move(centre[0] + 120, centre[1] + 30, steps=4)
        page.tab.mouse.up()
    ((name, uri),) = sent.value.post_data_json["images"].items()
    assert f'image:"{name}"' == page.tab.input_value("#query")
    part = page.library.service.encoder.encode_images([_decoded(uri)])[0]  # the right half: one colour
    page.wait_for(page.library.ranked(part))
    with Image.open(io.BytesIO(_decoded(uri))) as crop:
        assert np.ptp(np.asarray(crop.convert("RGB")), axis=(0, 1)).max() < 16  # WebP is not exact
    page.tab.goto("about:blank")
    page.tab.go_back()
    page.wait_for(page.library.ranked(part))


def test_page_filters_by_what_is_chosen_in_menus(page: Driven):
    page.open("?q=red&weaker=1")
    page.tab.click("#menus details[data-kind=folders] summary")
    page.tab.click("#menus details[data-kind=folders] label:has-text('2019')")
    page.wait_for(page.library.ranked(page.texts("red"), within="2019"))
    page.tab.reload()
    page.wait_for(page.library.ranked(page.texts("red"), within="2019"))
    page.tab.click("#terms button:has-text('2019')")
    page.wait_for(page.library.ranked(page.texts("red")))


def test_page_runs_from_right_to_left_for_arabic(page: Driven):
    page.open()
    page.ask("قطة نائمة")
    page.tab.click("#weaker")
    page.tab.wait_for_selector("#hits li:nth-child(2)")
    page.until("document.getElementById('main').dir === 'rtl'")
    first, second = (page.tab.locator("#hits li").nth(at).bounding_box() for at in (0, 1))
    assert first["x"] > second["x"]


def test_page_says_what_is_wrong_and_what_was_not_read(page: Driven):
    page.open()
    page.ask('"red')
    page.tab.wait_for_selector("#status.bad")
    assert "quote is not closed" in page.tab.inner_text("#status")
    page.tab.click("#errors")
    assert "2020/broken.png" in page.tab.inner_text("#dialog table")
    page.problems = [problem for problem in page.problems if "400 (Bad Request)" not in problem]


@pytest.mark.skipif(not AXE, reason="AXE_CORE does not name axe-core's axe.min.js")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_has_no_serious_accessibility_finding(page: Driven, scheme: str):
    page.tab.emulate_media(color_scheme=scheme)
    page.open("?q=red&weaker=1")
    states = [
        None,
        "#hits li:nth-child(2) .image",
        "#close",
        "#menus summary",
        "#hits li:first-child .pick",
        "#help",
    ]
    for click in states:
        if click:
            page.tab.click(click)
        page.tab.evaluate(Path(AXE).read_text("utf-8") + "; 0")
        found = page.tab.evaluate("axe.run()")["violations"]
        told = [(one["id"], one["impact"], one["nodes"][0]["html"][:200]) for one in found]
        assert [one for one in told if one[1] in ("serious", "critical")] == [], click
