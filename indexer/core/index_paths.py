"""Where indexes lie, how their files are named, and which corpora and encoders the user named on this machine.

An index can come from someone else, and its manifest names folders, URLs and an encoder. They are read, contacted or
loaded only if the user named the same here, or trusts the index.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from llm2clip.common.files import data_home, open_regular, write_atomic
from llm2clip.indexer.core.address import Address, as_address
from llm2clip.indexer.core.errors import CorpusError, IndexerError, IndexNotFoundError

INDEX_VARIABLE = "LLM2CLIP_INDEX"
"""Environment variable that names the index of commands that name none."""
SAMPLE = "sample:"
"""Name of the corpus that ships with the package."""
_MANIFEST = "manifest.json"
_MOST_BYTES = 4 * 2**20
"""Longest manifest."""
_CORPUS_DIGITS = re.compile(r"-[0-9a-f]{8}$")
_IN_CONTAINER = re.compile(
    r"(.*?\.(?:tar|zip|parquet|arrow|feather|3gp|avi|flv|m2ts|m4v|mkv|mov|mp4|mpeg|mpg|mts|ogv|webm|wmv))#(.*)",
    re.DOTALL | re.IGNORECASE,
)
BY_NAME = frozenset(["list", "stdin"])
"""Types of corpus that may name files anywhere: lists."""


def default_index_path(corpus: str | os.PathLike[str]) -> Path:
    """Default folder of the index of a corpus: always the same for the same corpus."""
    spec = os.fspath(corpus)
    if spec == SAMPLE:
        return data_home() / "indexes" / "sample.index"
    if spec == "-":
        raise CorpusError("a list on standard input has no default index folder: name one with --index PATH")
    place = spec if "://" in spec else os.path.realpath(os.path.expanduser(spec))
    digest = hashlib.sha256(os.fsencode(place)).hexdigest()[:8]
    name = re.sub(r"[^\w.-]+", "-", os.path.basename(place)).strip("-.") or "images"
    return data_home() / "indexes" / f"{name[:60]}-{digest}.index"


def sample_index_path() -> Path:
    """Default folder of the index of the sample corpus."""
    return default_index_path(SAMPLE)


def sample_folder() -> Path:
    """The folder of the sample corpus inside the installed package."""
    return Path(__file__).parent.parent / "sample"


def sample_shards() -> list[Path]:
    """The tar shards of the sample corpus, in order; empty where the installation has none."""
    return sorted(sample_folder().glob("*.tar"))


def root_of(identity: Mapping[str, str]) -> str:
    """The folder or URL of a corpus; that of the sample corpus moves with the installation."""
    return str(sample_folder()) if identity["kind"] == "sample" else identity["root"]


def named_place(identity: Mapping[str, str]) -> str:
    """What a user names to have a corpus read: its list, its shards, or its folder or URL."""
    return identity.get("list") or identity.get("shards") or root_of(identity)


def split_key(key: str) -> tuple[str, str]:
    """Container and place in it: ``("a.tar", "b/c.jpg")`` of ``a.tar#b/c.jpg``, ``("", "cat #2.jpg")`` of a file."""
    found = _IN_CONTAINER.fullmatch(key)
    return (found[1], found[2]) if found else ("", key)


def uri_of(key: str, *, corpus: Mapping[str, str]) -> str:
    """The path or URL of an image, with ``#`` and its place in a container."""
    root = root_of(corpus)
    if is_elsewhere(key) and corpus["kind"] in BY_NAME:
        return key
    return f"{root.rstrip('/')}/{key}" if "://" in root else f"{root.rstrip(os.sep)}{os.sep}{key}"


def is_elsewhere(path: str) -> bool:
    """Whether a path is absolute or a URL."""
    return "://" in path or os.path.isabs(path) or bool(os.path.splitdrive(path)[0])


def _pointer() -> Path:
    return data_home() / "current.json"


def _recorded() -> dict[str, Any]:
    """What earlier commands noted: ``index``, built last; ``chosen`` by ``use``; ``known`` ones elsewhere."""
    try:
        recorded = json.loads(_pointer().read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return recorded if isinstance(recorded, dict) else {}


def _record(entries: Mapping[str, Any]) -> None:
    pointer = _pointer()
    pointer.parent.mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in entries.items() if value}
    write_atomic(pointer, json.dumps(kept, indent=2) + "\n")


def current_index() -> Path | None:
    """The default index: the chosen one, else the one built last of the user's own images, even if it is gone."""
    recorded = _recorded()
    place = recorded.get("chosen") or recorded.get("index")
    return Path(place) if isinstance(place, str) else None


def set_current_index(index: str | os.PathLike[str]) -> None:
    """Note that ``index`` was built: it is the default, unless another was chosen, and ``known_indexes`` has it."""
    recorded, path = _recorded(), os.path.abspath(index)
    known = _texts(recorded.get("known"))
    if Path(path).parent != _indexes() and path not in known:
        known.append(path)
    _record({**recorded, "index": path, "known": known})


def choose_index(index: str | os.PathLike[str] | None) -> None:
    """Make ``index`` the default whatever is built later; None: the one built last again."""
    _record({**_recorded(), "chosen": None if index is None else os.path.abspath(index)})


def forget_index(index: str | os.PathLike[str]) -> None:
    """Forget an index that was deleted."""
    recorded, path = _recorded(), os.path.abspath(index)
    kept = {name: value for name, value in recorded.items() if value != path}
    _record({**kept, "known": [each for each in _texts(recorded.get("known")) if each != path]})


def known_indexes() -> dict[str, Path]:
    """Name -> folder of the indexes in the data home and of those built elsewhere that still exist.

    A name is that of the folder without ``.index`` and the digits of the corpus, as far as it is the only one.
    """
    inside = sorted(_indexes().iterdir()) if _indexes().is_dir() else []
    elsewhere = map(Path, _texts(_recorded().get("known")))
    paths = [path for path in (*inside, *elsewhere) if (path / _MANIFEST).is_file()]
    whole = [path.name.removesuffix(".index") or path.name for path in paths]
    short = [_CORPUS_DIGITS.sub("", name) for name in whole]
    found: dict[str, Path] = {}
    for path, name, brief in zip(paths, whole, short, strict=True):
        alone = brief if short.count(brief) == 1 else name
        found[alone if alone not in found else str(path)] = path
    return found


def _indexes() -> Path:
    return data_home() / "indexes"


def _texts(value: object) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


@dataclass(frozen=True, kw_only=True)
class Place:
    """The index that was chosen."""

    path: Path | Address
    """Folder of the index, or its address in another engine."""
    sample: bool
    """Whether it is the index of the sample images, which can be built at any time."""
    fallback: bool = False
    """Whether it is the sample because no index was named and none has been built."""


def locate(index: str | os.PathLike[str] | None = None) -> Place:
    """Choose the index: ``index``, else ``LLM2CLIP_INDEX``, else the default one, else the sample's.

    Args:
        index: a folder, a name of ``known_indexes``, ``"sample:"``, or an address in another engine.

    Raises:
        IndexNotFoundError: the index that ``LLM2CLIP_INDEX`` names, or the default one, does not exist; or a folder of
            images was named rather than its index.
    """
    told = index if index is not None else os.environ.get(INDEX_VARIABLE) or None
    if told is None:
        current = current_index()
        if current is None:
            return Place(path=sample_index_path(), sample=True, fallback=True)
        _require(current, f"the default index, {current}, no longer exists")
        return Place(path=current, sample=current == sample_index_path())
    if os.fspath(told) == SAMPLE:
        return Place(path=sample_index_path(), sample=True)
    if address := as_address(told):
        return Place(path=address, sample=False)
    path = _named(os.fspath(told))
    if index is None:
        _require(path, f"{INDEX_VARIABLE} names {path}, which does not exist")
    _refuse_images(path)
    return Place(path=path, sample=False)


def _named(told: str) -> Path:
    path = Path(told).expanduser().absolute()
    if (path / _MANIFEST).exists() or os.sep in told:
        return path
    return known_indexes().get(told, path)  # also where a folder of images of that name lies here


def _refuse_images(folder: Path) -> None:
    """Refuse a folder of images that has an index elsewhere: the index is what is to be named."""
    if not folder.is_dir() or (folder / _MANIFEST).exists():
        return
    for name, path in known_indexes().items():
        if path == default_index_path(folder) or str(folder) in _roots(path):
            raise IndexNotFoundError(
                f"{folder} is a folder of images; its index is {path}: name that, or --index {quote(name)}"
            )


def _roots(index: Path) -> list[str]:
    """Where the images of an index are, as far as its manifest can be read."""
    with suppress(OSError, ValueError, AttributeError, TypeError, RecursionError):
        with open_regular(index / _MANIFEST) as file:
            content = json.loads(file.read(_MOST_BYTES))
        return [str(source.get("root")) for source in content["sources"]]
    return []


def _require(path: Path, problem: str) -> None:
    if not path.exists():
        raise IndexNotFoundError(
            f"{problem}: name another with --index (see  llm2clip-index list), build one of your own images with  "
            "llm2clip-index build FOLDER, or take the sample with --index sample:"
        )


_DIGITS = r"(\d{5,18})"  # fits into 64 bits
_NAMES = {
    "items": re.compile(rf"items-{_DIGITS}\.db", re.ASCII),
    "vectors": re.compile(rf"vectors-{_DIGITS}-\d{{5,18}}\.npy", re.ASCII),
    "candidates": re.compile(rf"candidates-{_DIGITS}\.faiss", re.ASCII),
}
MAX_GENERATION = 10**18 - 1
"""Largest number of a generation."""


def items_name(generation: int) -> str:
    """File name of the items of a generation."""
    return f"items-{generation:05d}.db"


def ann_name(generation: int) -> str:
    """File name of the ANN index of a generation."""
    return f"candidates-{generation:05d}.faiss"


def segment_name(generation: int, number: int) -> str:
    """File name of a segment of vectors."""
    return f"vectors-{generation:05d}-{number:05d}.npy"


def is_name(name: object, kind: Literal["items", "vectors", "candidates"]) -> bool:
    """Whether something is the name of a file of a kind: never a path, so never a file outside the folder."""
    return isinstance(name, str) and _NAMES[kind].fullmatch(name) is not None


def generation_of(name: str) -> int | None:
    """The generation that a file belongs to; None if it is no file of an index."""
    bare = re.sub(r"-(?:journal|wal|shm)$", "", name)
    found = next(filter(None, (pattern.fullmatch(bare) for pattern in _NAMES.values())), None)
    return int(found[1]) if found else None


_OWN_KINDS = frozenset(["sample"])
_noted: set[str] = set()
"""What this process noted, also where the data home cannot be written."""


def remember(sources: Iterable[Mapping[str, str]] = (), *, encoder: str | None = None) -> None:
    """Note corpora, and the encoder, that the user named."""
    marks = {_mark(source) for source in sources} | ({_mark(encoder)} if encoder is not None else set())
    _noted.update(marks)
    with suppress(OSError):
        if new := sorted(marks - _kept()):
            _file().parent.mkdir(parents=True, exist_ok=True)
            with open(_file(), "a", encoding="ascii") as stream:  # one write: processes may do this at once
                stream.write("".join(f"{mark}\n" for mark in new))


def require_named(source: Mapping[str, str], *, index: Path | Address) -> None:
    """Refuse a corpus that only the index names.

    Raises:
        IndexerError: it was not named on this machine.
    """
    if source["kind"] in _OWN_KINDS or _known(_mark(source)):
        return
    raise IndexerError(
        f"{index} was not built on this machine, and names the images in {named_place(source)}: to let them be read, "
        f"run  llm2clip-index trust {quote(str(index))}"
    )


def require_named_encoder(name: str, *, index: Path | Address) -> None:
    """Refuse an encoder that only the index names; the catalogue's need not be asked for.

    Raises:
        IndexerError: it was not named on this machine.
    """
    if _known(_mark(name)):
        return
    raise IndexerError(
        f"{index} was not built on this machine, and names the encoder {name!r}: name one with --encoder, or, to let "
        f"that be loaded, run  llm2clip-index trust {quote(str(index))}"
    )


def _known(mark: str) -> bool:
    return mark in _noted or mark in _kept()


def _kept() -> frozenset[str]:
    try:
        return frozenset(_file().read_text("ascii").split())
    except (OSError, ValueError):
        return frozenset()


def _file() -> Path:
    return data_home() / "named.txt"


def _mark(named: Mapping[str, str] | str) -> str:
    """A digest, so that the file tells nothing. Of a corpus all but the user's spelling counts."""
    if isinstance(named, str):
        content: object = ["encoder", os.path.abspath(named) if os.path.isdir(named) else named]
    else:
        content = ["corpus", sorted((name, value) for name, value in named.items() if name != "spec")]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
