"""Small data sets in the schemas in which they are published: same files, same fields, few or empty-headed items."""

import base64
import json

import pytest

from llm2clip.eval.loaders.load import load_protocol

JPEG = b"\xff\xd8\xff\xe0 stands for an image"


class DataFolder:
    """A data folder that is filled file by file."""

    def __init__(self, root):
        self.root = root

    def text(self, path, content):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8", newline="")
        return file

    def json(self, path, value):
        return self.text(path, json.dumps(value, ensure_ascii=False))

    def json_lines(self, path, records):
        return self.text(path, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in records))

    def images(self, folder, names):
        (self.root / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            (self.root / folder / name).write_bytes(JPEG + str(name).encode())

    def tsv(self, path, keys):
        """Chinese-CLIP's images: id, tab, base64."""
        lines = [f"{key}\t{base64.b64encode(JPEG + str(key).encode()).decode()}\n" for key in keys]
        return self.text(path, "".join(lines))

    def load(self, name, language=None):
        return load_protocol(name, data=self.root, language=language)


@pytest.fixture
def folder(tmp_path):
    return DataFolder(tmp_path / "data")


def linked(found):
    """What belongs together, readable: caption to keys of images."""
    return [
        (caption, [found.images[place].key for place in right])
        for caption, right in zip(found.captions, found.caption_images, strict=True)
    ]


@pytest.fixture(name="linked")
def _linked():
    return linked
