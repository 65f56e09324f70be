"""Where files are looked for, and what is said when they are nowhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llm2clip.common.files import models_home
from llm2clip.encoders import ModelError, load_encoder
from llm2clip.encoders.catalog.hub import HubFiles, find_cached, missing_files, resolve_files

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WANTED = HubFiles(
    name="it", repository="owner/model", files=("weights.bin", "a.json|b.json"), revision=COMMIT
)


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


def put(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    return folder


def test_find_cached_prefers_local_folder(hub: Path):
    snapshot = put(hub / "models--owner--model" / "snapshots" / COMMIT, "weights.bin", "b.json")
    assert find_cached(WANTED) == snapshot == resolve_files(WANTED)
    own = put(models_home() / "model", "weights.bin")
    assert find_cached(WANTED) == snapshot  # it lacks a file
    put(own, "a.json")
    assert find_cached(WANTED) == own == resolve_files(WANTED)


def test_find_cached_follows_the_refs_of_the_cache(hub: Path):
    cache = hub / "models--owner--model"
    put(cache / "snapshots" / "older", "weights.bin", "a.json")
    newer = put(cache / "snapshots" / "newer", "weights.bin", "a.json")
    short = HubFiles(name="it", repository="owner/model", files=WANTED.files, revision="012345")
    assert find_cached(short) is None
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("newer\n")
    assert find_cached(short) == newer
    assert find_cached(WANTED) is None  # another commit than the pinned one


def test_missing_files_lists_what_a_folder_lacks(tmp_path: Path):
    put(tmp_path, "b.json", "x.pt")
    assert missing_files(tmp_path, WANTED.files) == ["weights.bin"]
    assert missing_files(tmp_path, ("*.pt", "*.safetensors|*.bin")) == ["*.safetensors|*.bin"]


def test_resolve_files_downloads_only_what_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    asked: list[dict] = []

    def download(repository: str, **options: object) -> str:
        asked.append({"repository": repository, **options})
        return str(put(tmp_path / "fetched", "weights.bin", "a.json"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: None)
    wanted = HubFiles(
        name="it", repository="owner/model", files=WANTED.files, revision=COMMIT, extras=("notes.txt",)
    )
    assert resolve_files(wanted) == tmp_path / "fetched"
    assert asked == [
        {
            "repository": "owner/model",
            "revision": COMMIT,
            "allow_patterns": ["weights.bin", "a.json", "b.json", "notes.txt"],
            "ignore_patterns": [],
        }
    ]
    with pytest.raises(
        ModelError, match=r"could not be downloaded: the repository has no tokenizer\.json\nneeded: tokenizer"
    ):
        resolve_files(replace(WANTED, files=("tokenizer.json",)))


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        (True, "HF_HUB_OFFLINE forbids it"),
        (False, r"the hub does not answer \(no such host\)"),
    ],
)
def test_resolve_files_without_hub_tries_no_download(
    monkeypatch: pytest.MonkeyPatch, told: bool, reason: str
):
    def ask(*_: object, **__: object) -> None:
        raise ConnectionError("no such host")

    def download(*_: object, **__: object) -> None:
        pytest.fail("tried to download")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", told)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", ask)
    with pytest.raises(ModelError, match=f"could not be downloaded: {reason}\nneeded: "):
        resolve_files(WANTED)


def test_resolve_files_excludes_sub_folders(monkeypatch: pytest.MonkeyPatch):
    """By the hub's own rule for patterns, in which a star stands for slashes too."""
    from huggingface_hub.utils import filter_repo_objects

    from llm2clip.encoders.catalog.entries import find_encoder, find_language
    from llm2clip.encoders.catalog.hub import encoder_files, update_files

    listed = ["tower.safetensors", "config.json", "LLM2CLIP-Llama-3.1-8B/adapter_config.json"]
    listed += ["LLM2CLIP-Llama-3.1-8B/adapter_model.safetensors", "model.py"]
    fetched: list[list[str]] = []

    def download(_: str, *, allow_patterns: list[str], ignore_patterns: list[str], **__: object) -> str:
        options = {"allow_patterns": allow_patterns, "ignore_patterns": ignore_patterns}
        fetched.append(list(filter_repo_objects(listed, **options)))
        raise OSError("that is all")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: None)
    row = find_encoder("llm2clip-llama3.1-8b-siglip2-so400m-patch14-224")
    with pytest.raises(ModelError, match=r"--include '\*\.safetensors' .* --exclude '\*/\*' --local-dir "):
        resolve_files(encoder_files(row))
    with pytest.raises(ModelError, match="that is all"):
        resolve_files(update_files(find_language(row.language_model)))
    assert fetched == [listed[:2], listed[2:4]]


def test_load_encoder_offline_says_what_to_put_where(hub: Path):
    with pytest.raises(ModelError) as caught:
        load_encoder("llm2clip-openai-l-14-336")
    said, place = str(caught.value), models_home() / "LLM2CLIP-Openai-L-14-336"
    assert said == (
        "llm2clip-openai-l-14-336 is not on this machine and could not be downloaded: HF_HUB_OFFLINE forbids it"
    )
    commit = "92512331f393a003c3d98404677f991c188162c9"
    assert caught.value.__notes__ == [
        "needed: model.safetensors, config.json (2.3 GB) from microsoft/LLM2CLIP-Openai-L-14-336; texts need "
        "microsoft/LLM2CLIP-Llama-3-8B-Instruct-CC-Finetuned (15.0 GB) as well",
        f"looked in: {place} and the hub's cache {hub}",
        "where there is internet: hf download microsoft/LLM2CLIP-Openai-L-14-336 "
        f"--revision {commit} --include 'model.safetensors' --include 'config.json' --local-dir {place}",
        "from a mirror: the same after  export HF_ENDPOINT=https://MIRROR",
    ]


def test_load_encoder_offline_names_files_of_language_model():
    with pytest.raises(ModelError) as caught:
        load_encoder("llama-3.2-1b-cc").encode_texts(["a dog"])
    said = "\n".join(caught.value.__notes__)
    assert "from microsoft/LLM2CLIP-Llama-3.2-1B-Instruct-CC-Finetuned" in said
    assert "model.safetensors, tokenizer.json, tokenizer_config.json (4.9 GB)" in said


def test_language_files_of_gated_repository(hub: Path):
    from llm2clip.encoders.catalog.entries import find_language
    from llm2clip.encoders.catalog.hub import language_available, language_files, update_files

    row = find_language("llama-3.1-8b-cc")
    with pytest.raises(ModelError, match=r"it is gated: accept its licence on the hub and run hf auth"):
        resolve_files(language_files(row))
    update = update_files(row)
    assert "LLM2CLIP-Llama-3.1-8B/adapter_config.json" in update.files[0]
    assert not language_available(row)
    put(language_files(row).home, *row.files)
    assert not language_available(row)
    put(update.home, "LLM2CLIP-Llama-3.1-8B/adapter_config.json")
    assert language_available(row)


def test_list_encoders_knows_what_is_available():
    from llm2clip.encoders import list_encoders
    from llm2clip.encoders.catalog.entries import find_encoder, language_of

    name = "llm2clip-llama3.2-1b-eva02-l-14-336"
    row = find_encoder(name)

    def here() -> bool:
        return next(card.available for card in list_encoders() if card.name == name)

    put(models_home() / row.repository.split("/")[1], "anything.pt")
    assert not here()
    language = language_of(row)
    put(models_home() / language.repository.split("/")[1], *language.files)
    assert here()
