"""Find published files on this machine or download them.

Searched in this order: a folder below :func:`models_home` named like the repository; the cache of the Hugging Face
hub; the hub itself. Only the requested files are downloaded: a vision tower without its language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llm2clip.common.files import format_bytes
from llm2clip.common.paths import models_home
from llm2clip.encoders.catalog.entries import EncoderEntry, LanguageModelEntry, find_encoder, language_of
from llm2clip.encoders.core.errors import ModelError

_WHOLE = 40
"""Digits of a full commit hash; the hub accepts no shorter one."""
_TIMEOUT = 30.0
"""Seconds in which the hub must answer."""
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
    if wanted.home.is_dir() and not missing_files(wanted.home, wanted.files):
        return wanted.home
    cache = _hub_cache() / f"models--{wanted.repository.replace('/', '--')}"
    commit = wanted.commit
    with suppress(OSError):  # no branch: a commit
        commit = (cache / "refs" / commit).read_text(encoding="utf-8").strip()
    folder = cache / "snapshots" / commit
    return folder if folder.is_dir() and not missing_files(folder, wanted.files) else None


def resolve_files(wanted: HubFiles) -> Path:
    """The folder that holds all of the files; downloads them if necessary.

    Raises:
        ModelError: They are not on this machine and cannot be downloaded; the message names the files, their
            source and the folder to put them in.
    """
    if found := find_cached(wanted):
        return found
    from huggingface_hub import snapshot_download

    if problem := _unreachable(wanted):
        raise ModelError(_advice(wanted, problem))
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
        raise ModelError(_advice(wanted, _first_line(error))) from error
    if absent := missing_files(folder, wanted.files):
        raise ModelError(_advice(wanted, f"the repository has no {', '.join(absent)}"))
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


def _advice(wanted: HubFiles, reason: str) -> str:
    files = ", ".join(file.replace("|", " or ") for file in wanted.files)
    chosen = [f"--include '{pattern}'" for pattern in _patterns(wanted)]
    chosen += [f"--exclude '{pattern}'" for pattern in _not_wanted(wanted)]
    size = f" ({format_bytes(wanted.size)})" if wanted.size else ""
    known = f" (the one described here begins with {wanted.revision})" if wanted.revision else ""
    whole = wanted.commit == wanted.revision
    revision = f"revision {wanted.revision}" if whole else f"its newest revision{known}"
    command = f"hf download {wanted.repository} --revision {wanted.commit} {' '.join(chosen)} --local-dir {wanted.home}"
    hint = f" {wanted.hint}" if wanted.hint else ""
    return (
        f"{wanted.name} is not on this machine: looked in {wanted.home} and in the hub's cache {_hub_cache()}, and "
        f"could not download it: {reason.rstrip('.')}. It needs {files}{size} from {wanted.repository} at {revision}, "
        f"in {wanted.home}.{hint} Where there is internet, run: {command} (The encoder nano needs no files.)"
    )


def _hub_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def encoder_files(entry: EncoderEntry) -> HubFiles:
    """The files of an encoder; of LLM2CLIP without its language model."""
    hint = ""
    if entry.language_model:
        language = language_of(entry)
        hint = (
            f"To read texts it needs {language.repository} ({format_bytes(language.download_bytes)}) as well."
        )
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
        hint="The repository is gated: accept its licence on the hub and run hf auth login first."
        if gated
        else "",
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
