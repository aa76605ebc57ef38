"""An interrupted recording gets its true lengths; any other file is left as it is."""

from __future__ import annotations

import io
import os
import random
import struct
import wave
from pathlib import Path

import pytest

from ha_sync.files import wav

pytestmark = pytest.mark.req("R26")


def pcm(sound: bytes, *, data: int | None = None, riff: int | None = None, tail: bytes = b"") -> bytes:
    data = len(sound) if data is None else data
    riff = 36 + len(sound) + len(tail) if riff is None else riff
    head = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", riff, b"WAVE", b"fmt ", 16, 1, 1, 8000, 16000, 2, 16, b"data", data
    )
    return head + sound + tail


def gsm(blocks: int, *, whole: bool) -> bytes:
    """As Asterisk's format_wav_gsm writes it: a fmt chunk of 20 bytes, a fact chunk, sound from byte 60."""
    sound = bytes(range(65)) * blocks
    riff, samples, data = (52 + len(sound), blocks * 320, len(sound)) if whole else (0, 0, 0)
    return (
        struct.pack("<4sI4s4sI", b"RIFF", riff, b"WAVE", b"fmt ", 20)
        + struct.pack("<HHIIHHHH", 49, 1, 8000, 1625, 65, 0, 2, 320)
        + struct.pack("<4sII4sI", b"fact", 4, samples, b"data", data)
        + sound
    )


def repaired(tmp_path: Path, content: bytes) -> tuple[bytes, wav.Repair | None]:
    path = tmp_path / "r.wav"
    path.write_bytes(content)
    fd = os.open(path, os.O_RDWR)
    try:
        done = wav.repair(fd)
    finally:
        os.close(fd)
    return path.read_bytes(), done


def test_zero_lengths_become_the_true_ones_and_it_plays(tmp_path: Path) -> None:
    sound = os.urandom(3 * 32768)
    after, done = repaired(tmp_path, pcm(sound, data=0, riff=0))
    assert after == pcm(sound)
    assert done is not None
    assert done.original == pcm(b"", data=0, riff=0)
    with wave.open(io.BytesIO(after)) as played:
        assert played.readframes(played.getnframes()) == sound


def test_lengths_beyond_the_end_become_the_true_ones(tmp_path: Path) -> None:
    after, done = repaired(tmp_path, pcm(b"ab" * 100, data=0xFFFFFFFF, riff=0xFFFFFFFF))
    assert done is not None
    assert after == pcm(b"ab" * 100)


def test_a_torn_sample_is_not_counted(tmp_path: Path) -> None:
    after, done = repaired(tmp_path, pcm(b"abc", data=0, riff=0))
    assert done is not None
    assert (done.data_length, done.riff_length) == (2, 38)
    assert after[44:] == b"abc"


def test_gsm_in_wav_gets_its_samples_too(tmp_path: Path) -> None:
    after, done = repaired(tmp_path, gsm(7, whole=False))
    assert done is not None
    assert after == gsm(7, whole=True)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"RIFF",
        b"not a recording at all" * 10,
        pcm(b"abcd"),
        pcm(b"abcd", tail=b"LIST\x04\0\0\0info"),
        gsm(3, whole=True),
        pcm(b"", data=0),
        b"RIFF\0\0\0\0WAVEjunk\xff\xff\xff\xff",
    ],
)
def test_what_is_right_or_no_recording_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    assert repaired(tmp_path, content) == (content, None)


def test_no_bytes_whatever_make_it_fail_or_change_the_sound(tmp_path: Path) -> None:
    chance = random.Random(5)
    for _ in range(500):
        content = bytearray(pcm(chance.randbytes(chance.randrange(200)), data=chance.choice([0, 7, 1 << 31])))
        for _ in range(chance.randrange(4)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        header = wav.parse(bytes(content))
        after, done = repaired(tmp_path, bytes(content))
        assert len(after) == len(content)
        if done is None:
            assert after == content
        else:
            assert header is not None
            assert after[header.data_at :] == content[header.data_at :]
            assert repaired(tmp_path, after)[1] is None
