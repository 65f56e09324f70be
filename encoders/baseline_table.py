"""The lines of ``baselines.toml`` and what to say of them. Nothing heavy is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm2clip.encoders.catalogue import EncoderRow, encoder_rows, find_encoder
from llm2clip.encoders.places import human

if TYPE_CHECKING:
    from llm2clip.encoders.cards import EncoderCard


def baseline_rows() -> list[EncoderRow]:
    """The lines of ``baselines.toml``, in their order."""
    return [row for row in encoder_rows() if not row.language_model]


def baseline_cards() -> list[EncoderCard]:
    """What one needs to know to choose one of them. Nothing is loaded or fetched."""
    return [baseline_card(row) for row in baseline_rows()]


def baseline_card(row: EncoderRow) -> EncoderCard:
    """A line of the table in words."""
    from llm2clip.encoders.cards import EncoderCard

    # A note is what it is, then, after a semicolon, what sets it apart.
    what, _, apart = row.note.partition("; ")
    languages = "" if row.languages == ("mul",) else f", {', '.join(row.languages)}"
    recalls = {
        "Flickr30k R@1": row.published.flickr30k_t2i_r1 or row.nearest.flickr30k_t2i_r1,
        "Flickr30k-CN R@1": row.published.flickr30k_cn_t2i_r1,
    }
    quality = [f"{name} {value:g}" for name, value in recalls.items() if value is not None]
    size, where = row.download_bytes, row.repository
    if beside := find_encoder(row.beside):
        part = "vision tower" if row.family == "m-clip" else "tokenizer"
        size += beside.download_bytes if row.family == "m-clip" else 0
        where += f", and the {part} of {beside.repository},"
    return EncoderCard(
        name=row.name,
        summary=f"{what}{languages}, up to {row.max_text_tokens} tokens",
        size=human(size),
        quality=", ".join([*quality, apart] if apart else quality) or "no published recall on Flickr30k",
        download=f"{where} from the Hugging Face hub",
        download_bytes=size,
    )
