"""Changed encoder folders: a short run of ``mutated_folders.py``."""

import random

from llm2clip.encoders import load_encoder

from .mutated_folders import folders, hostile_encoders


def test_changed_encoder_folder_is_loaded_or_refused(tmp_path):
    for folder in folders(tmp_path):
        assert load_encoder(folder).encode_texts(["a dog"]).shape[0] == 1, "unchanged it is loaded"
    chosen = random.Random(7)
    outcomes = [outcome for _ in range(25) for outcome in hostile_encoders(tmp_path, chosen)]
    assert set(outcomes) <= {"answered", "refused"}
    assert outcomes.count("refused") > 5
