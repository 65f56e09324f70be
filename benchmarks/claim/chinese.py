"""Part b: with a text model that knows Chinese, stage 2 on English captions alone reaches Chinese too."""

from __future__ import annotations

from benchmarks.claim.material import ClaimSettings
from benchmarks.claim.photographs import own_images, table, trained


def measure(settings: ClaimSettings) -> list[str]:
    """Train on English and on Chinese captions alone, measure both, and say it in Markdown."""
    lines = ["## b. Chinese from English", "", f"Text model {settings.text_model}; the recipe own-images."]
    for name, language in (("English", "en"), ("Chinese", "zh")):
        parts = trained(own_images(settings, (language,)), settings.work / f"only-{language}")
        lines += ["", f"Trained on {name} captions only:", "", *table(parts)]
    return lines
