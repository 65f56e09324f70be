"""Find the files of a model: on this machine, or on the hub to download.

Searched in this order: a folder below :func:`models_home` named like the repository; the cache of the Hugging Face
hub; the hub itself. Only the requested files are downloaded: a vision tower without its language model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llm2clip.common.files import NoHomeError, format_bytes, models_home
from llm2clip.encoders.catalog.entries import EncoderEntry, LanguageModelEntry, find_encoder, language_of
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.files import read_object

_WHOLE = 40
"""Digits of a full commit hash; the hub accepts no shorter one."""
_TIMEOUT = 30.0
"""Seconds in which the hub must answer."""
_NAMED = 4
"""Files that a message names."""
_GATED = "meta-llama/"
"""Owner of repositories that need an accepted licence."""


@dataclass(frozen=True, kw_only=True)
class HubFiles:
    """Files of a repository on the hub."""

    name: str
    """The model that needs them, for messages."""
    repository: str
    """``owner/name``."""
    files: tuple[str, ...]
    """Required files; ``*`` as in a shell, ``a|b`` for either."""
    extras: tuple[str, ...] = ()
    """Optional files, downloaded if they exist."""
    revision: str = ""
    """Commit; fewer than 40 digits, or none, mean the newest revision."""
    size: int = 0
    """Total bytes, for messages."""
    hint: str = ""
    """Added to the message when they are not available."""

    @property
    def commit(self) -> str:
        """The revision to request from the hub."""
        return self.revision if len(self.revision) == _WHOLE else "main"

    @property
    def home(self) -> Path:
        """The local folder that they may be copied to by hand."""
        return models_home() / self.repository.rpartition("/")[2]


def missing_files(folder: Path, files: Sequence[str]) -> list[str]:
    """The files that a folder lacks."""
    return [file for file in files if not any(any(folder.glob(either)) for either in file.split("|"))]


def find_cached(wanted: HubFiles) -> Path | None:
    """The folder on this machine that holds all of the files, or ``None``. Downloads nothing."""
    with suppress(NoHomeError):
        if wanted.home.is_dir() and not missing_files(wanted.home, wanted.files):
            return wanted.home
    cache = _hub_cache() / f"models--{wanted.repository.replace('/', '--')}"
    commit = wanted.commit
    with suppress(OSError):  # no branch: a commit
        commit = (cache / "refs" / commit).read_text(encoding="utf-8").strip()
    folder = cache / "snapshots" / commit
    return folder if folder.is_dir() and not missing_files(folder, wanted.files) else None


def resolve_files(wanted: HubFiles) -> Path:
    """The folder that holds all of the files; downloads them if necessary."""
    if found := find_cached(wanted):
        return found
    from huggingface_hub import snapshot_download

    if problem := _unreachable(wanted):
        raise _not_here(wanted, problem)
    try:
        folder = Path(
            snapshot_download(
                wanted.repository,
                revision=wanted.commit,
                allow_patterns=_patterns(wanted),
                ignore_patterns=_not_wanted(wanted),
            )
        )
    except (OSError, ValueError) as error:
        raise _not_here(wanted, _first_line(error)) from error
    if absent := missing_files(folder, wanted.files):
        raise _not_here(wanted, f"the repository has no {', '.join(absent)}")
    return folder


def _unreachable(wanted: HubFiles) -> str | None:
    """Why the hub does not answer, or ``None`` if it does. Checked first, as a download retries for half a minute."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HfHubHTTPError

    if HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids it"
    try:
        HfApi().model_info(wanted.repository, revision=wanted.commit, timeout=_TIMEOUT)
    except HfHubHTTPError:
        return None  # it answers; the download will raise the details
    except Exception as error:  # that of whichever HTTP library the hub's client uses
        return f"the hub does not answer ({_first_line(error)})"
    return None


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).split("\n")[0].removeprefix("Got: ")


def _patterns(wanted: HubFiles) -> list[str]:
    return [either for file in (*wanted.files, *wanted.extras) for either in file.split("|")]


def _not_wanted(wanted: HubFiles) -> list[str]:
    """On the hub ``*`` matches slashes too: exclude sub-folders where only top-level files are wanted."""
    patterns = _patterns(wanted)
    plain = any("*" in pattern for pattern in patterns) and not any("/" in pattern for pattern in patterns)
    return ["*/*"] if plain else []


def _not_here(wanted: HubFiles, reason: str) -> ModelError:
    """The error for files that are not available: a line, and as notes what is needed and how to get it."""
    files = ", ".join(file.replace("|", " or ") for file in wanted.files[:_NAMED])
    files += f" and {len(wanted.files) - _NAMED} more" if len(wanted.files) > _NAMED else ""
    chosen = [f"--include '{pattern}'" for pattern in _patterns(wanted)]
    chosen += [f"--exclude '{pattern}'" for pattern in _not_wanted(wanted)]
    size = f" ({format_bytes(wanted.size)})" if wanted.size else ""
    error = ModelError(
        f"{wanted.name} is not on this machine and could not be downloaded: {reason.rstrip('.')}"
    )
    error.add_note(
        f"needed: {files}{size} from {wanted.repository}{f'; {wanted.hint}' if wanted.hint else ''}"
    )
    error.add_note(f"looked in: {wanted.home} and the hub's cache {_hub_cache()}")
    error.add_note(
        f"where there is internet: hf download {wanted.repository} --revision {wanted.commit} {' '.join(chosen)} "
        f"--local-dir {wanted.home}"
    )
    error.add_note("from a mirror: the same after  export HF_ENDPOINT=https://MIRROR")
    return error


def _hub_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def encoder_files(entry: EncoderEntry) -> HubFiles:
    """The files of an encoder; of LLM2CLIP without its language model."""
    hint = ""
    if entry.language_model:
        language = language_of(entry)
        hint = f"texts need {language.repository} ({format_bytes(language.download_bytes)}) as well"
    return HubFiles(
        name=entry.name,
        repository=entry.repository,
        revision=entry.revision,
        files=entry.files,
        extras=entry.extras,
        size=entry.download_bytes,
        hint=hint,
    )


def language_files(entry: LanguageModelEntry) -> HubFiles:
    """The files of a language model, without its low-rank update."""
    gated = entry.repository.startswith(_GATED)
    return HubFiles(
        name=entry.name,
        repository=entry.repository,
        revision=entry.revision,
        files=entry.files,
        size=entry.download_bytes,
        hint="it is gated: accept its licence on the hub and run hf auth login first" if gated else "",
    )


def update_files(entry: LanguageModelEntry) -> HubFiles | None:
    """The files of a language model's low-rank update, or of a whole model that takes its place."""
    place = entry.lora
    if place is None:
        return None
    settings = (f"{place.subfolder}/{name}" for name in ("adapter_config.json", "config.json"))
    return HubFiles(
        name=f"the low-rank update of {entry.name}",
        repository=place.repository,
        revision=place.revision,
        files=("|".join(settings),),
        extras=(f"{place.subfolder}/*",),
    )


def encoder_available(entry: EncoderEntry) -> bool:
    """Whether all files of an encoder are on this machine, its language model not counted."""
    beside = find_encoder(entry.beside) if entry.beside else None
    return find_cached(encoder_files(entry)) is not None and (beside is None or encoder_available(beside))


def language_available(entry: LanguageModelEntry) -> bool:
    """Whether all files of a language model are on this machine."""
    update = update_files(entry)
    return find_cached(language_files(entry)) is not None and (
        update is None or find_cached(update) is not None
    )


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """The files of one model: a published one of the catalogue, or a local folder or file."""

    name: str
    """What the encoder is called."""
    entry: EncoderEntry | LanguageModelEntry | None = None
    """The entry of the catalogue: the named one, or the one that a local folder is called like."""
    path: Path | None = None
    """A local folder or file of weights; ``None`` for a model from the hub."""

    @cached_property
    def folder(self) -> Path:
        """The folder of the files; downloaded from the hub if necessary."""
        if self.path is not None:
            return self.path if self.path.is_dir() else self.path.parent
        assert isinstance(self.entry, EncoderEntry), "a model without a path is one of the catalogue"
        return resolve_files(encoder_files(self.entry))

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """``config.json``, parsed; empty if there is none, or if a single file of weights was given."""
        path = self.folder / "config.json"
        single = self.path is not None and self.path.is_file()
        return read_object(path) if path.is_file() and not single else {}

    @property
    def local_folder(self) -> Path | None:
        """The folder, if the model is a local one."""
        return self.path if self.path is not None and self.path.is_dir() else None

    @property
    def encoder_entry(self) -> EncoderEntry | None:
        """The entry, if it is that of an encoder."""
        return self.entry if isinstance(self.entry, EncoderEntry) else None

    def beside(self, part: str, *, files: tuple[str, ...]) -> Path:
        """The folder of ``files`` borrowed from another entry, or of a local sub-folder ``part`` that holds them."""
        if self.path is not None and (self.folder / part).is_dir():
            return self.folder / part
        entry = self.encoder_entry
        other = find_encoder(entry.beside) if entry is not None else None
        if other is None:
            raise ModelError(f"{self.folder} has no folder {part}, which its model needs")
        return resolve_files(
            HubFiles(name=self.name, repository=other.repository, revision=other.revision, files=files)
        )
