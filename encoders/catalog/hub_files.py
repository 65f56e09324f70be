"""The files that a line of the catalogue stands for, and whether they are on this machine. Nothing is fetched."""

from __future__ import annotations

from llm2clip.common.files import format_bytes
from llm2clip.encoders.catalog.entries import EncoderEntry, LanguageModelEntry, find_encoder, language_of
from llm2clip.encoders.catalog.hub import HubFiles, find_cached

_GATED = "meta-llama/"


def encoder_files(row: EncoderEntry) -> HubFiles:
    """The files of an encoder; of LLM2CLIP without its language model."""
    hint = ""
    if row.language_model:
        language = language_of(row)
        hint = (
            f"To read texts it needs {language.repository} ({format_bytes(language.download_bytes)}) as well."
        )
    return HubFiles(
        name=row.name,
        repository=row.repository,
        revision=row.revision,
        files=row.files,
        extras=row.extras,
        size=row.download_bytes,
        hint=hint,
    )


def language_files(row: LanguageModelEntry) -> HubFiles:
    """The files of a language model, without its low-rank update."""
    hint = ""
    if row.repository.startswith(_GATED):
        hint = "The repository is gated: accept its licence on the hub and run hf auth login first."
    return HubFiles(
        name=row.name,
        repository=row.repository,
        revision=row.revision,
        files=row.files,
        size=row.download_bytes,
        hint=hint,
    )


def update_files(row: LanguageModelEntry) -> HubFiles | None:
    """The files of a language model's low-rank update: plain, or a whole model in its place."""
    place = row.lora
    if place is None:
        return None
    settings = (f"{place.subfolder}/{name}" for name in ("adapter_config.json", "config.json"))
    return HubFiles(
        name=f"the low-rank update of {row.name}",
        repository=place.repository,
        revision=place.revision,
        files=("|".join(settings),),
        extras=(f"{place.subfolder}/*",),
    )


def encoder_is_here(row: EncoderEntry) -> bool:
    """Whether all files of an encoder are on this machine, without its language model."""
    beside = find_encoder(row.beside) if row.beside else None
    return find_cached(encoder_files(row)) is not None and (beside is None or encoder_is_here(beside))


def language_is_here(row: LanguageModelEntry) -> bool:
    """Whether all files of a language model are on this machine."""
    update = update_files(row)
    return find_cached(language_files(row)) is not None and (
        update is None or find_cached(update) is not None
    )
