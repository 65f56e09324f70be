import numpy as np
import pytest

from llm2clip.train.synthetic.phrases import (
    CELLS,
    COLOUR_NAMES,
    COLOURS,
    ITEMS,
    OPENINGS,
    PLACES,
    SCENE_LANGUAGES,
)
from llm2clip.train.synthetic.scenes import (
    Scene,
    Thumbnails,
    caption,
    draw_scene,
    last_twin,
    sample_scene,
    scene_pool,
    scene_record,
    swap_twin,
    thumbnails,
)

from .material import artwork, emoji

SCENE = Scene(background=1, objects=(0, 3, 5), cells=(0, 8, 4))


def test_phrases_are_complete_in_every_scene_language():
    for language in SCENE_LANGUAGES:
        assert len(PLACES[language]) == len(set(PLACES[language])) == CELLS
        assert len(COLOUR_NAMES[language]) == len(COLOURS)
        assert all("{n}" in text and "{colour}" in text for text in OPENINGS[language])
        assert all("{place}" in text and "{name}" in text for text in ITEMS[language])


def test_caption_tells_every_object_with_its_place_in_order():
    assert caption(SCENE, emoji()) == (
        "an image with 3 things on a light blue background . in the top left corner there is an apple . "
        "in the bottom right corner there is a lemon . in the center there is a fish ."
    )
    assert caption(SCENE, emoji(), language="zh") == (
        "浅蓝色背景的图片上有3样东西。左上角有apple-zh。右下角有lemon-zh。正中间有fish-zh。"
    )


def test_twins_differ_in_one_thing_only():
    rng = np.random.default_rng(0)
    pool = scene_pool(emoji())
    for _ in range(50):
        scene = sample_scene(pool, rng)
        assert 7 <= len(scene.objects) <= 8
        assert len(set(scene.cells)) == len(set(scene.objects)) == len(scene.objects)
        last = last_twin(scene, pool, rng)
        assert last.objects[:-1] == scene.objects[:-1]
        assert last.cells == scene.cells
        assert last.objects[-1] not in scene.objects
        swap = swap_twin(scene, rng)
        assert swap.objects == scene.objects
        first, second = (i for i in range(len(scene.cells)) if swap.cells[i] != scene.cells[i])
        assert (swap.cells[first], swap.cells[second]) == (scene.cells[second], scene.cells[first])


def test_draw_scene_puts_an_object_in_its_cell():
    drawings = thumbnails(artwork(styles=("noto",)), 12, side=20)
    image = draw_scene(SCENE, drawings, np.random.default_rng(0), size=66, jitter=0.0)
    assert image.shape == (66, 66, 3)
    # Centres of the cells 0, 8 and 4 show apple red, lemon yellow and fish turquoise; an empty cell shows nothing.
    for place, colour in ((11, (220, 40, 40)), (55, (230, 200, 40)), (33, (60, 190, 200))):
        assert np.abs(image[place, place].astype(int) - colour).max() <= 2
    assert tuple(image[11, 55]) == COLOURS[1]


def test_draw_scene_mixes_half_transparent_thumbnails():
    pixels = np.full((1, 4, 4, 4), 0.5, dtype=np.float32)  # premultiplied white at half opacity
    drawings = Thumbnails(pixels, (np.array([0]),))
    scene = Scene(background=0, objects=(0,), cells=(4,))
    image = draw_scene(scene, drawings, np.random.default_rng(0), size=12, jitter=0.0)
    assert (image == 255).all()


def test_scene_record_lists_objects_and_twins():
    rng = np.random.default_rng(0)
    record = scene_record(SCENE, emoji(), twins={"swap": swap_twin(SCENE, rng)})
    names = emoji()[3].names
    assert record["objects"][1] == {"emoji": emoji()[3].char, "names": names, "row": 2, "column": 2}
    assert record["caption"] == record["captions"]["en"] != record["twins"]["swap"]
    assert record["emoji"] == "".join(emoji()[i].char for i in SCENE.objects)


@pytest.mark.parametrize("language", SCENE_LANGUAGES)
def test_caption_wordings_wrap_around(language):
    wordings = len(ITEMS[language]) * len(OPENINGS[language])
    first = caption(SCENE, emoji(), language=language)
    assert caption(SCENE, emoji(), language=language, wording=wordings) == first
