"""Small data sets in the schemas in which they are published: same files, same fields, few or empty-headed items."""

import base64
import json

import pytest

from llm2clip.eval.datasets.tar_images import DatasetError
from llm2clip.eval.loaders.load import load_protocol

JPEG = b"\xff\xd8\xff\xe0 stands for an image"


class DataFolder:
    """A data folder that is filled file by file."""

    def __init__(self, root):
        self.root = root

    def fill(self, files):
        """Write ``{path: content}``: names of images below a folder (``path/``), a text, records or JSON."""
        for path, content in files.items():
            if path.endswith("/"):
                (self.root / path).mkdir(parents=True, exist_ok=True)
                for name in content:
                    (self.root / path / name).write_bytes(JPEG + str(name).encode())
            elif isinstance(content, str):
                self.text(path, content)
            elif path.endswith((".jsonl", ".jsonlines")):
                self.text(path, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in content))
            else:
                self.text(path, json.dumps(content, ensure_ascii=False))

    def text(self, path, content):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8", newline="")
        return file

    def images(self, folder, names):
        self.fill({f"{folder}/": names})

    def load(self, name, language=None):
        return load_protocol(name, data=self.root, language=language)

    def refuses(self, name, files, message):
        self.fill(files)
        with pytest.raises(DatasetError, match=message):
            self.load(name)


@pytest.fixture
def folder(tmp_path):
    return DataFolder(tmp_path / "data")


@pytest.fixture
def tsv():
    """Chinese-CLIP's images: id, tab, base64."""
    return lambda keys: "".join(
        f"{key}\t{base64.b64encode(JPEG + str(key).encode()).decode()}\n" for key in keys
    )


@pytest.fixture
def linked():
    """What belongs together, readable: caption to keys of images."""
    return lambda found: [
        (caption, [found.images[place].key for place in right])
        for caption, right in zip(found.captions, found.caption_images, strict=True)
    ]
