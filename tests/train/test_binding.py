import math
from itertools import pairwise

import numpy as np
import torch

from llm2clip.encoders.layers.llama import BidirectionalLlama, LlamaConfig
from llm2clip.train.core.text_states import TextEncoder
from llm2clip.train.core.tokenizer import build_tokenizer
from llm2clip.train.core.trainer import LoopConfig, Run
from llm2clip.train.nano.caption_batches import ContrastiveStage, LanguageConfig, Prototypes, Teacher
from llm2clip.train.nano.text_tower import bind_places, silence_blocks
from llm2clip.train.synthetic.scenes import caption, move_twin, sample_scene, scene_pool, sentences
from llm2clip.train.synthetic.texts import TextPool

from .material import emoji

WIDTH = 48


def world():
    things = emoji()
    pool = TextPool(things, [])
    nothing = Teacher(np.zeros((12, 12), np.float32), [], np.zeros((0, 12), np.float16))
    stage = ContrastiveStage(things, pool, nothing, scene_pool(things))
    rng = np.random.default_rng(0)
    corpus = [
        text for _ in range(300) for told in stage.told_scenes(1, (1, 3), rng).captions for text in told
    ]
    tokenizer = build_tokenizer([*corpus, *(name.text for name in pool.names)], vocab_size=900)
    encoder = TextEncoder(tokenizer, max_tokens=128, chunk_tokens=512)
    torch.manual_seed(0)
    shape = {"vocab_size": 900, "hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 16}
    return stage, encoder, BidirectionalLlama(LlamaConfig(**shape, **heads))


def test_sentences_join_to_the_caption_in_every_language():
    things = emoji()
    scene = sample_scene(scene_pool(things), np.random.default_rng(1))
    for language in things[0].names:
        told = sentences(scene, things, language=language, wording=1)
        assert len(told) == len(scene.objects) + 1
        assert "".join(told) == caption(scene, things, language=language, wording=1)
        assert len(sentences(scene, things, language=language, opening=False)) == len(scene.objects)


def test_move_twin_moves_one_or_two_objects():
    things, rng = emoji(), np.random.default_rng(2)
    for objects in (1, 2, 8):
        for _ in range(50):
            scene = sample_scene(scene_pool(things), rng, objects=(objects, objects))
            twin = move_twin(scene, rng)
            assert (twin.objects, twin.background) == (scene.objects, scene.background)
            assert len(set(twin.cells)) == objects
            changed = sum(a != b for a, b in zip(scene.cells, twin.cells, strict=True))
            assert changed in (1, 2)


def test_read_sentences_sums_each_sentences_tokens():
    _, encoder, model = world()
    texts = [["a kite .", " an owl here ."], ["苹果在左边。"], ["one .", " two .", " three ."]]
    read = encoder.read_sentences(model, texts)
    torch.testing.assert_close(read.texts, encoder.pool(model, ["".join(text) for text in texts]))
    found = []
    for text in texts:
        ids, mask = encoder.batch(encoder.tokenize(["".join(text)]))
        hidden = model(ids, mask)[0]
        # Sentences tokenised one by one: their lengths say where each begins within the whole.
        lengths = [len(row) - 2 for row in encoder.tokenize([sentence.strip() for sentence in text])]
        assert 1 + sum(lengths) + 1 == len(hidden)
        edges = np.cumsum([1, *lengths])
        edges[-1] += 1  # the end token belongs to the last sentence
        found += [hidden[start:end].sum(0) for start, end in pairwise(edges)]
    torch.testing.assert_close(read.sentences, torch.stack(found), atol=1e-4, rtol=1e-4)


def test_bind_places_learns_in_a_short_run(tmp_path):
    stage, encoder, model = world()
    silence_blocks(model)
    one, bind = LoopConfig(steps=1), LoopConfig(steps=320, warmup=5, evaluate_every=320, floor=0.1)
    config = LanguageConfig(pretrain=one, warm=one, bind=bind, tune=one, bind_scenes=24)
    with torch.no_grad():
        model.embed_tokens.weight.mul_(2)
    run = Run(tmp_path, seed=1)
    bind_places(run, model, Prototypes(12, WIDTH), encoder, stage, config)
    # Knowing every thing and no place at all would leave the logarithm of nine.
    assert run.story()["history"][-1]["placed"] < math.log(9) - 0.2
