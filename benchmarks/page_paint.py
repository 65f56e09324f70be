"""How soon the page of ``llm2clip-serve`` paints what it found: from the answer to the first image, and to all of them.

200 photographs of 12 megapixels, made here; headless Chromium. The page asks for 200 hits at once instead of 60. In a
window as high as they need, every thumbnail is asked for; in one of ordinary size, those near the window.

    python -m benchmarks.page_paint [--images 200] [--times 5]
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.serving import serve

AIM = 300
"""Most milliseconds from the answer to the first painted image."""
_WINDOWS = {"all 200 in the window": 12_000, "window of 1400 x 900": 900}
"""Heights in CSS pixels."""
_ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
_WATCH = """
(() => {
  window.marks = { answer: null, shown: [] };
  const fetched = window.fetch;
  window.fetch = async (...asked) => {
    const response = await fetched(...asked);
    if (String(asked[0]).includes("v1/search")) window.marks = { answer: performance.now(), shown: [] };
    return response;
  };
  // The page calls an image "shown" when it is decoded; the frame after the next one has it.
  new MutationObserver((changes) => {
    for (const { target } of changes) {
      if (!target.classList?.contains("shown") || target.counted === window.marks.answer) continue;
      target.counted = window.marks.answer;
      requestAnimationFrame(() => requestAnimationFrame(() => window.marks.shown.push(performance.now())));
    }
  }).observe(document, { subtree: true, attributes: true, attributeFilter: ["class"] });
})();
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), images=options.images, times=options.times), indent=1))


def measure(folder: Path, *, images: int, times: int) -> dict[str, Any]:
    """Median and worst milliseconds of each case."""
    from playwright.sync_api import sync_playwright

    from llm2clip.encoders import load_encoder
    from llm2clip.indexer import build_index

    photographs(folder / "photographs", count=images)
    build_index(folder / "photographs", folder / "index", encoder=load_encoder("nano", device="cpu"))
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    assert browser_path, "there is no Chromium on the path"
    taken: dict[str, list[tuple[float, float, int]]] = {}
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=browser_path, args=_ARGUMENTS.split())
        for name, height in _WINDOWS.items():
            for _ in range(times):
                # A server of its own each time, which has made no thumbnail yet.
                with serve(folder / "index", encoder="nano", max_batch=8) as ((host, port), _process):
                    context = browser.new_context(viewport={"width": 1400, "height": height}, bypass_csp=True)
                    for case in ("to be made", "in memory"):
                        took = once(context, f"http://{host}:{port}", images=images)
                        taken.setdefault(f"{name}, thumbnails {case}", []).append(took)
                    context.close()
        browser.close()
    cases = {case: summary(each) for case, each in taken.items()}
    return {"images": images, "aim for the first painted": AIM, **cases}


def once(context: Any, address: str, *, images: int) -> tuple[float, float, int]:  # noqa: ANN401 (playwright's)
    """Milliseconds from the answer to the first painted image and to the last, and how many were painted."""
    tab = context.new_page()
    tab.add_init_script(_WATCH)

    def widen(route: Any) -> None:  # noqa: ANN401 (playwright's)
        body = {**json.loads(route.request.post_data), "limit": images, "min_confidence": None, "fold": False}
        route.continue_(post_data=json.dumps(body))

    tab.route("**/v1/items?*", lambda route: route.abort())  # what is shown before a question is asked
    tab.route("**/v1/search", widen)
    tab.goto(f"{address}/")
    tab.fill("#query", "a photograph")
    tab.keyboard.press("Enter")
    tab.wait_for_function(f"document.querySelectorAll('#hits li').length === {images}")
    before = -1
    while (painted := tab.evaluate("marks.shown.length")) != before or not painted:
        before = painted
        tab.wait_for_timeout(1500)
    answer, shown = tab.evaluate("[marks.answer, marks.shown]")
    tab.close()
    return min(shown) - answer, max(shown) - answer, len(shown)


def summary(taken: list[tuple[float, float, int]]) -> dict[str, float]:
    """In whole milliseconds."""
    first, last, painted = zip(*taken, strict=True)
    return {
        "first painted, median": round(statistics.median(first)),
        "first painted, worst": round(max(first)),
        "last painted, median": round(statistics.median(last)),
        "images painted": min(painted),
    }


def photographs(folder: Path, *, count: int) -> None:
    """JPEGs of 4000 x 3000 pixels, each of its own smooth colours with some noise."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    noise = Image.fromarray(random.integers(0, 256, (750, 1000, 3), dtype=np.uint8)).resize((4000, 3000))
    for number in range(count):
        small = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        image = Image.blend(small.resize((4000, 3000), Image.Resampling.BICUBIC), noise, 0.1)
        image.save(folder / f"{number:03}.jpg", quality=85)


if __name__ == "__main__":
    main()
