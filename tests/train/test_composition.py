import numpy as np
import torch
from torch.nn.functional import cosine_similarity, normalize

from llm2clip.train.nano.scene_targets import COLOUR_WEIGHT, SceneTargets
from llm2clip.train.synthetic.scenes import Scene, move_twin, swap_twin


def targets(width=192):
    torch.manual_seed(0)
    return SceneTargets(torch.randn(30, width), seed=3)


def test_scene_targets_sum_gated_objects_and_background():
    composed = targets()
    scene = Scene(background=2, objects=(4, 9, 17), cells=(0, 5, 8))
    expected = np.zeros(192)
    for thing, cell in zip(scene.objects, scene.cells, strict=True):
        expected += composed.prototypes_ED[thing].numpy() * composed.gates_CD[cell].numpy() / 3**0.5
    colour = composed.colours_KD[2].numpy()
    np.testing.assert_allclose(np.linalg.norm(colour), COLOUR_WEIGHT, rtol=1e-6)
    expected += colour
    np.testing.assert_allclose(composed([scene])[0], expected / np.linalg.norm(expected), atol=1e-6)


def test_scene_targets_gates_keep_half_of_the_dimensions():
    composed = targets()
    assert (composed.gates_CD.count_nonzero(1) == 96).all()
    placed = composed.placed([5] * 9, range(9))
    assert 0.8 < float(placed.norm(dim=1).mean()) < 1.2
    between = cosine_similarity(placed[0:1], placed[1:])
    assert 0.3 < float(between.mean()) < 0.7
    own = cosine_similarity(placed, composed.prototypes_ED[5:6])
    assert 0.6 < float(own.mean()) < 0.8


def test_scene_targets_depend_on_places_not_on_order():
    composed = targets()
    scene = Scene(background=0, objects=(1, 2), cells=(3, 4))
    told_anew = Scene(background=0, objects=(2, 1), cells=(4, 3))
    rng = np.random.default_rng(0)
    same, swapped, moved = (
        composed([told_anew, swap_twin(scene, rng), move_twin(scene, rng)]) @ composed([scene]).T
    )
    torch.testing.assert_close(same, torch.ones(1))
    assert float(swapped) < 0.8
    assert float(moved) < 0.9


def test_scene_targets_ignore_prototype_norms():
    torch.manual_seed(0)
    prototypes = torch.randn(6, 32)
    scene = Scene(background=1, objects=(0, 5), cells=(2, 7))
    torch.testing.assert_close(
        SceneTargets(prototypes * 7, seed=1)([scene]), SceneTargets(normalize(prototypes), seed=1)([scene])
    )
