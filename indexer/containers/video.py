"""Frames of videos at a fixed interval; the metadata of each holds its time."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from llm2clip.indexer.containers.container import Container, ContainerCorpus, Files
from llm2clip.indexer.containers.read_ahead import ReadAheadGroup
from llm2clip.indexer.core.errors import CorpusError, require_extra
from llm2clip.indexer.records.embedded import video_time
from llm2clip.indexer.records.record import Record
from llm2clip.indexer.records.sidecars import sidecar_beside
from llm2clip.indexer.records.values import with_embedded

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

EVERY: Final = 10.0
"""Default interval between frames, in seconds."""
_AT_ONCE = 16
_SEEK_FROM = 4.0  # seconds: about the distance of keyframes
_MOST_FRAMES = 10_000_000
_MADE = ("com.apple.quicktime.creationdate", "creation_time", "date")  # the first has a zone


@final
class VideoCorpus(ContainerCorpus):
    """Frames of videos; the key of each is ``clip.mp4#t=12.5``, its time in seconds."""

    kind: Final = "video"  # type: ignore[misc]
    what: Final = "video"  # type: ignore[misc]

    def __init__(self, spec: str, files: Files, *, every: float = EVERY) -> None:
        super().__init__(spec, files)
        self._every = checked(every)

    def identity(self) -> dict[str, str]:
        """What the manifest stores."""
        return {**super().identity(), "every": f"{self._every:g}"}

    def _names(self, container: Container) -> Iterator[str]:
        yield "no frames"

    def _inside(self, container: Container) -> Iterator[Record]:
        return frames_of(container, every=self._every)


def checked(every: float) -> float:
    """Check the interval between frames, and that videos can be read."""
    require_extra("av", extra="video", what="reading videos")
    if not 0.001 <= every < 1e6:
        raise CorpusError(f"seconds between frames must be between 0.001 and a million, got {every:g}")
    return every


def frames_of(container: Container, *, every: float) -> Iterator[Record]:
    """A record for each frame, ``every`` seconds; nothing is decoded before it is read."""
    file = container.file
    changed = file.stat().st_mtime_ns
    stamp, describe = sidecar_beside(file, root=file.parent)  # which go to each frame
    length, made = _length(file)
    count = int(min(_MOST_FRAMES, max(0.0, length - 1e-6) // every + 1))
    chunk, first = None, 0
    for number in range(count):
        if chunk is None or number == first + _AT_ONCE:
            first = number
            times = [round(each * every, 3) for each in range(first, min(first + _AT_ONCE, count))]
            chunk = ReadAheadGroup(partial(read_frames, file, times=times), one=partial(_one, file, times))
        seconds = round(number * every, 3)
        within = f"t={seconds:.3f}".rstrip("0").rstrip(".")
        yield Record(
            key=f"{container.path}#{within}",
            uri=f"{container.uri}#{within}",
            file=file,
            path=container.path,
            size=0,
            mtime_ns=changed,
            sidecars=stamp,
            inner={"time": seconds},
            fetch=partial(chunk.take, number - first),
            metadata=with_embedded({"time": seconds}, made),
            describe=describe,
        )


def _one(file: Path, times: Sequence[float], number: int) -> bytes:
    return read_frame(file, seconds=times[number])


def read_frame(file: Path, *, seconds: float) -> bytes:
    """The frame shown at a time, as JPEG."""
    require_extra("av", extra="video", what="reading videos")
    [frame] = read_frames(file, times=[seconds])
    if isinstance(frame, Exception):
        raise frame
    return frame


def _opened(file: Path) -> tuple[InputContainer, VideoStream]:
    import av

    try:
        container = av.open(str(file))
    except (av.FFmpegError, ValueError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        raise CorpusError(f"not a readable video: {_reason(error)}") from error
    if not container.streams.video:
        container.close()
        raise CorpusError("it has no video stream")
    return container, container.streams.video[0]


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _length(file: Path) -> tuple[float, dict[str, Any] | None]:
    """Seconds from the first frame to the end of the last, and when the video was made."""
    container, stream = _opened(file)
    with container:
        return _seconds(container, stream), _made(container)


def _made(container: InputContainer) -> dict[str, Any] | None:
    """When a video was made, as its file says."""
    written = container.metadata
    found = (video_time(written[name]) for name in _MADE if name in written)
    return next((each for each in found if each is not None), None)


def _seconds(container: InputContainer, stream: VideoStream) -> float:
    base = float(stream.time_base or 0)
    if stream.duration and base:
        return stream.duration * base
    if container.duration:
        from_zero = "matroska" in container.format.name  # which states its end, not its length
        return container.duration / 1e6 - (_start(stream) if from_zero else 0.0)
    last = 0.0
    for packet in container.demux(stream):  # some files do not state it; packets are read, not decoded
        last = max(last, float((packet.pts or 0) + (packet.duration or 0)) * base)
    return last - _start(stream)


def read_frames(file: Path, *, times: Sequence[float]) -> list[bytes | Exception]:
    """The frames shown at some times, as JPEG; an exception for each that cannot be read.

    Times are seconds from the beginning, ascending.
    """
    import av

    found: list[bytes | Exception] = []
    try:
        container, stream = _opened(file)
        with container:
            position = None  # of the last decoded frame
            frames: Iterator[VideoFrame] = iter(())
            for seconds in times:
                if position is None or seconds - position >= _SEEK_FROM:
                    frames = _from(container, stream, seconds)
                frame, frames = _shown_at(frames, seconds + _start(stream))
                position = (frame.time or 0.0) - _start(stream)
                found.append(_jpeg(frame))
    except (av.FFmpegError, OSError, ValueError) as error:
        problem = CorpusError(f"the video is damaged here: {_reason(error)}")
        found += [problem] * (len(times) - len(found))
    return found


def _start(stream: VideoStream) -> float:
    return float((stream.start_time or 0) * (stream.time_base or 0))


def _from(container: InputContainer, stream: VideoStream, seconds: float) -> Iterator[VideoFrame]:
    """Frames from the last keyframe at or before a time."""
    wanted = seconds + _start(stream)
    base = float(stream.time_base or 1)
    container.seek(int(wanted / base), stream=stream, backward=True)
    frames = container.decode(stream)
    first = next(frames, None)
    if first is None or (first.time or 0.0) > wanted + 1e-3:  # its index is wrong
        container.seek(int(_start(stream) / base), stream=stream, backward=True)
        return container.decode(stream)
    return chain([first], frames)


def _shown_at(frames: Iterator[VideoFrame], seconds: float) -> tuple[VideoFrame, Iterator[VideoFrame]]:
    """The last frame that begins at or before a time, and the frames from it on."""
    shown: VideoFrame | None = None
    for frame in frames:
        if shown is not None and (frame.time or 0.0) > seconds + 1e-3:
            return shown, chain([shown, frame], frames)
        shown = frame
    if shown is None:
        raise CorpusError("it ends earlier")
    return shown, chain([shown], frames)


def _jpeg(frame: VideoFrame) -> bytes:
    """The frame, upright, as JPEG."""
    from PIL import Image

    turns = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
    to_image: Any = frame.to_image  # which has no types
    image = to_image()
    turn = turns.get(round(frame.rotation) % 360)
    if turn is not None:
        image = image.transpose(turn)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()
