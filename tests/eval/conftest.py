"""Small tar files in the sample-corpus format, made of plain colours."""

import io
import json
import tarfile
from types import SimpleNamespace

import pytest
from PIL import Image


def colour(rgb, *, size=16):
    stream = io.BytesIO()
    Image.new("RGB", (size, size), rgb).save(stream, "PNG")
    return stream.getvalue()


def write(path, items):
    """Write ``{key: (picture bytes or None, metadata or None)}``."""
    with tarfile.open(path, "w") as tar:
        for key, (picture, metadata) in items.items():
            if picture is not None:
                add(tar, f"{key}.png", picture)
            if metadata is not None:
                add(tar, f"{key}.json", json.dumps(metadata, ensure_ascii=False).encode())
    return path


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def tars():
    return SimpleNamespace(colour=colour, write=write, add=add)
