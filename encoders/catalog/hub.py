"""Where published files are on this machine, how to fetch them, and what to say when they cannot be had.

Looked for in this order: a folder of one's own below :func:`models_home`, called like the repository; the cache of
the Hugging Face hub; the hub itself. Only what is asked for is fetched: a vision tower without its language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from llm2clip.common.files import format_bytes
from llm2clip.common.paths import models_home
from llm2clip.encoders.core.errors import ModelError

_WHOLE = 40
"""Digits of a commit; fewer cannot be asked for."""

_PATIENCE = 30.0
"""Seconds in which the hub must answer."""


@dataclass(frozen=True, kw_only=True)
class HubFiles:
    """Files of a repository on the hub."""

    name: str
    """What needs them, for messages."""
    repository: str
    """``owner/name``."""
    files: tuple[str, ...]
    """What is needed; ``*`` as in a shell, ``a|b`` for either."""
    extras: tuple[str, ...] = ()
    """What is fetched too where it is there."""
    revision: str = ""
    """Commit; fewer than 40 digits, or none, mean the newest."""
    size: int = 0
    """Bytes of them all, for messages."""
    hint: str = ""
    """What else to say when they cannot be had."""

    @property
    def commit(self) -> str:
        """What to ask the hub for."""
        return self.revision if len(self.revision) == _WHOLE else "main"

    @property
    def home(self) -> Path:
        """The folder of one's own that they may be put in."""
        return models_home() / self.repository.rpartition("/")[2]


def missing_files(folder: Path, files: Sequence[str]) -> list[str]:
    """Which of the files are not in a folder."""
    return [file for file in files if not any(any(folder.glob(either)) for either in file.split("|"))]


def find_cached(wanted: HubFiles) -> Path | None:
    """The folder on this machine that holds all of the files; ``None`` if there is none. Nothing is fetched."""
    if wanted.home.is_dir() and not missing_files(wanted.home, wanted.files):
        return wanted.home
    cache = _hub_cache() / f"models--{wanted.repository.replace('/', '--')}"
    commit = wanted.commit
    with suppress(OSError):  # no branch: a commit
        commit = (cache / "refs" / commit).read_text(encoding="utf-8").strip()
    folder = cache / "snapshots" / commit
    return folder if folder.is_dir() and not missing_files(folder, wanted.files) else None


def resolve_files(wanted: HubFiles) -> Path:
    """The folder that holds all of the files, downloaded now if need be.

    Raises:
        ModelError: They are not on this machine and cannot be downloaded; the message says which files, from
            where, and where to put them.
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
    """Why the hub does not answer; ``None`` if it does. Downloads try for half a minute before they give up."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HfHubHTTPError

    if HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids it"
    try:
        HfApi().model_info(wanted.repository, revision=wanted.commit, timeout=_PATIENCE)
    except HfHubHTTPError:
        return None  # it answers: what it has against us, the download says
    except Exception as error:  # that of whichever HTTP library the hub's client uses
        return f"the hub does not answer ({_first_line(error)})"
    return None


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).split("\n")[0].removeprefix("Got: ")


def narrowed(wanted: HubFiles, files: Sequence[str]) -> HubFiles:
    """The same repository, but other files of it."""
    return replace(wanted, files=tuple(files), extras=(), size=0)


def _patterns(wanted: HubFiles) -> list[str]:
    return [either for file in (*wanted.files, *wanted.extras) for either in file.split("|")]


def _not_wanted(wanted: HubFiles) -> list[str]:
    """To the hub a ``*`` stands for slashes too: what is wanted of a folder would take the folders below along."""
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
