"""Every picture and sound that is promised can be read, and everything else is refused with one line."""

import base64
import io
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trisense.errors import BadInput
from trisense.media import Limits, load_audio, load_image

RATE = 16000
DEFAULT = Limits()
RED, GREEN = (255, 0, 0), (0, 255, 0)


def picture(width: int = 40, height: int = 30) -> Image.Image:
    """Red on the left, green on the right, a white row on top."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height))
    image.paste("white", (0, 0, width, 6))
    return image


def encoded(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def tone(seconds: float = 0.5, rate: int = RATE) -> np.ndarray:
    """440 Hz at half of full scale, float32 [T]."""
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def spoken(wave: np.ndarray, form: str, codec: str, rate: int = RATE, layout: str = "mono") -> bytes:
    """A wave [T] in a container, the same in every channel."""
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        stream.codec_context.options = {"strict": "experimental"}  # libav's own vorbis encoder calls itself so
        channels = stream.codec_context.layout.nb_channels
        samples = np.ascontiguousarray(np.tile(wave, (channels, 1)))
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
        frame.sample_rate = rate
        resampler = av.AudioResampler(stream.codec_context.format, layout, rate, stream.codec_context.frame_size or 0)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return file.getvalue()


def wav(
    data: bytes, *, claims: int | None = None, rate: int = RATE, channels: int = 1, bits: int = 16, code: int = 1
) -> bytes:
    """A wav file by hand, so that its header can lie: `claims` bytes of samples instead of what is there."""
    size = len(data) if claims is None else claims
    block = channels * bits // 8
    head = struct.pack("<IHHIIHH", 16, code, channels, rate, min(rate * block, 2**32 - 1), block, bits)
    return (
        b"RIFF"
        + struct.pack("<I", min(size + 36, 2**32 - 1))
        + b"WAVEfmt "
        + head
        + b"data"
        + struct.pack("<I", size)
        + data
    )


def pcm(wave: np.ndarray) -> bytes:
    return (wave * 32767).astype("<i2").tobytes()


def silent_video() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        video = container.add_stream("mpeg4", rate=5)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        container.mux(video.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(video.encode(None))
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A png that claims a size and holds one row at most."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def data_url(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def refusal(load: Callable, source, limits: Limits = DEFAULT) -> str:
    """The one line that refuses `source`; nothing else may be raised, and nothing may be warned about."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BadInput) as refused:
            load(source, limits)
    line = str(refused.value)
    assert "\n" not in line and line.isprintable() and len(line) < 400
    return line


def attempt(load: Callable, source: bytes, limits: Limits) -> tuple[Any, str]:
    """What was loaded, or the line that refused it."""
    try:
        return load(source, limits), ""
    except BadInput as error:
        return None, str(error)


def overwritten(data: bytes) -> bytes:
    """An m4a whose tables are whole and whose sound is noise."""
    first, last = data.index(b"mdat") + 4, data.index(b"moov") - 4
    return data[:first] + np.random.default_rng(1).bytes(last - first) + data[last:]


# Pictures that are read


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_promised_picture_format_is_read(form: str, tmp_path: Path) -> None:
    data = encoded(picture(), form)
    path = tmp_path / "picture"  # the name says nothing: the bytes decide
    path.write_bytes(data)
    with path.open("rb") as file:
        images = [load_image(source) for source in (data, path, str(path), file, data_url(data, "image/any"))]
    for image in images:
        assert (image.mode, image.size) == ("RGB", (40, 30))
        assert np.abs(np.asarray(image)[20, 5] - np.array(RED)).max() < 60
        assert np.abs(np.asarray(image)[20, 35] - np.array(GREEN)).max() < 60


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_picture_upright(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = {  # what a camera held this way stores
        1: lambda image: image,
        2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
        4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
        6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
        7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
        8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
    }[orientation](picture())
    image = load_image(encoded(stored, form, exif=exif))
    assert image.size == (40, 30)
    assert np.abs(np.asarray(image, int) - np.asarray(picture(), int)).mean() < 12
    # A PIL image that was opened elsewhere is turned as well, and only once.
    assert load_image(Image.open(io.BytesIO(encoded(stored, form, exif=exif)))).size == (40, 30)
    assert load_image(image) == image


def half_clear(mode: str) -> Image.Image:
    image = Image.new("RGBA", (4, 2), (*RED, 255))
    image.paste((0, 0, 0, 0), (2, 0, 4, 2))
    return image.convert(mode)


def clear_palette() -> Image.Image:
    image = Image.new("P", (4, 2), 0)
    image.putpalette([*RED, 0, 0, 0])
    image.paste(1, (2, 0, 4, 2))
    image.info["transparency"] = 1
    return image


@pytest.mark.parametrize(
    ("image", "left"),
    [(half_clear("RGBA"), RED), (half_clear("LA"), (76, 76, 76)), (clear_palette(), RED)],
    ids=["RGBA", "LA", "P"],
)
def test_alpha_is_laid_on_white(image: Image.Image, left: tuple[int, int, int]) -> None:
    for source in (encoded(image, "PNG"), image):
        loaded = load_image(source)
        assert loaded.getpixel((0, 0)) == left
        assert loaded.getpixel((3, 1)) == (255, 255, 255)


def test_half_transparent_red_on_white_is_pink() -> None:
    loaded = load_image(Image.new("RGBA", (2, 2), (255, 0, 0, 128)))
    assert loaded.getpixel((0, 0)) == (255, 127, 127)


@pytest.mark.parametrize(
    ("greys", "expected"),
    [
        (np.array([[0, 257, 32896, 65535]], np.uint16), [0, 1, 128, 255]),
        (np.array([[0, 100, 255, 255]], np.int32), [0, 100, 255, 255]),
        (np.array([[0, 25700, 65535, 65535]], np.int32), [0, 100, 255, 255]),
        (np.array([[-100, 0, 100, 100]], np.int32), [0, 128, 255, 255]),
        (np.array([[0, 0.5, 1, np.nan]], np.float32), [0, 128, 255, 0]),
        (np.array([[-2, -2, 2, 2]], np.float32), [0, 0, 255, 255]),
        (np.array([[7e6, 7e6, 7e6, 7e6]], np.float32), [0, 0, 0, 0]),
    ],
)
def test_deep_greys_are_scaled(greys: np.ndarray, expected: list[int]) -> None:
    for source in (Image.fromarray(greys), encoded(Image.fromarray(greys), "TIFF")):
        assert np.asarray(load_image(source))[0].tolist() == [[grey] * 3 for grey in expected]


def test_a_16_bit_png_is_scaled() -> None:
    greys = np.array([[0, 257 * 100, 65535]], np.uint16)
    assert np.asarray(load_image(encoded(Image.fromarray(greys), "PNG")))[0, :, 0].tolist() == [0, 100, 255]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "LAB", "RGBX"])
def test_other_modes_become_rgb(mode: str) -> None:
    white = Image.new("RGB", (3, 3), "white")
    image = white.convert(mode) if mode != "LAB" else Image.new("LAB", (3, 3), (255, 128, 128))
    loaded = load_image(image)
    assert loaded.mode == "RGB" and min(loaded.getpixel((1, 1))) >= 253


def test_of_an_animation_the_first_frame_is_read() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, GREEN, "blue")]
    for form in ("GIF", "WEBP", "PNG", "TIFF"):
        loaded = load_image(encoded(frames[0], form, save_all=True, append_images=frames[1:]))
        assert np.abs(np.array(loaded.getpixel((4, 4))) - RED).max() < 3, form


@settings(max_examples=30)
@given(st.integers(1, 20), st.integers(1, 20), st.booleans(), st.randoms(use_true_random=False))
def test_an_array_is_its_picture(height: int, width: int, colour: bool, random) -> None:
    shape = (height, width, 3) if colour else (height, width)
    array = np.frombuffer(random.randbytes(int(np.prod(shape))), np.uint8).reshape(shape)
    loaded = np.asarray(load_image(array))
    np.testing.assert_array_equal(loaded, array if colour else np.stack([array] * 3, axis=-1))
    url = data_url(encoded(Image.fromarray(array), "PNG"), "image/png")
    np.testing.assert_array_equal(np.asarray(load_image(url)), loaded)


def test_the_result_is_a_copy() -> None:
    image = Image.new("RGB", (3, 3), RED)
    load_image(image).putpixel((0, 0), GREEN)
    assert image.getpixel((0, 0)) == RED


def test_broken_exif_does_not_spoil_a_picture() -> None:
    data = encoded(picture(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(data).size == (40, 30)


# Sounds that are read

CODECS = [
    ("wav", "pcm_s16le"),
    ("wav", "pcm_s24le"),
    ("wav", "pcm_f32le"),
    ("wav", "pcm_u8"),
    ("wav", "pcm_mulaw"),
    ("flac", "flac"),
    ("mp3", "libmp3lame"),
    ("ogg", "vorbis"),
    ("ogg", "libopus"),
    ("opus", "libopus"),
    ("ipod", "aac"),
    ("mp4", "aac"),
    ("webm", "libopus"),
    ("webm", "vorbis"),
]


@pytest.mark.parametrize("layout", ["mono", "stereo", "5.1"])
@pytest.mark.parametrize("rate", [16000, 48000])
@pytest.mark.parametrize(("form", "codec"), CODECS)
def test_every_promised_sound_format_is_read(form: str, codec: str, rate: int, layout: str) -> None:
    layout = {("5.1", "libmp3lame"): "stereo"}.get((layout, codec), layout)
    layout = "stereo" if codec == "vorbis" else layout  # all that this encoder knows
    wave = load_audio(spoken(tone(0.5, rate), form, codec, rate, layout))
    assert wave.dtype == np.float32 and wave.ndim == 1
    assert abs(len(wave) - 8000) < 1700  # some codecs keep the silence that they put around a sound
    middle = wave[2000:6000]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(4000)))
    assert abs(np.argmax(spectrum) * RATE / 4000 - 440) <= 4
    # aac takes everything but rumble out of the sixth channel, so that a sixth of the mean is silent.
    loudness = 5 / 6 if (layout, codec) == ("5.1", "aac") else 1
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(loudness * 0.5 / np.sqrt(2), rel=0.12)


def test_a_wav_is_read_exactly_from_every_kind_of_source(tmp_path: Path) -> None:
    data = wav(pcm(tone()))
    path = tmp_path / "säge.bin"
    path.write_bytes(data)
    with path.open("rb") as file:
        sources = [data, path, str(path), file, io.BytesIO(data), data_url(data, "audio/wav")]
        for source in sources:
            np.testing.assert_allclose(load_audio(source), tone(), atol=1 / 16384)


def test_channels_are_averaged() -> None:
    left_only = np.stack([tone(), np.zeros_like(tone())], axis=1)
    for source in (left_only, wav(pcm(left_only), channels=2)):
        np.testing.assert_allclose(load_audio(source), tone() / 2, atol=1 / 16384)


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 48000, 96000])
def test_an_array_of_another_rate_is_resampled(rate: int) -> None:
    wave = load_audio((tone(1.0, rate), rate))
    assert abs(len(wave) - RATE) <= 2
    np.testing.assert_allclose(wave[400:-400], tone(1.0)[400 : len(wave) - 400], atol=0.01)


def test_another_sampling_rate_can_be_asked_for() -> None:
    assert abs(len(load_audio(wav(pcm(tone(1.0))), sampling_rate=8000)) - 8000) <= 2
    assert len(load_audio(tone(1.0, 8000), sampling_rate=8000)) == 8000


@settings(max_examples=30)
@given(
    st.lists(st.integers(-32768, 32767), min_size=1, max_size=300), st.sampled_from(["<i2", ">i2", "f2", "f4", "f8"])
)
def test_an_array_keeps_its_values(values: list[int], dtype: str) -> None:
    samples = np.array(values, "i2")
    samples = samples.astype(dtype) if dtype.endswith("i2") else (samples / 32768).astype(dtype)
    wave = load_audio(samples)
    np.testing.assert_allclose(wave, np.array(values) / 32768, atol=1e-3 if dtype == "f2" else 1e-6)
    assert wave.dtype == np.float32


def test_a_sound_slightly_too_loud_is_clipped() -> None:
    assert load_audio(np.array([1.2, -1.3, 0.5])).tolist() == [1, -1, 0.5]


@pytest.mark.parametrize("claims", [0, 0x7FFFFFFF, 0xFFFFFFFF, 99_999])
def test_a_wav_whose_size_was_not_known_or_is_wrong_gives_what_is_there(claims: int) -> None:
    assert len(load_audio(wav(pcm(tone()), claims=claims))) == 8000


def test_a_tag_after_the_last_frame_of_an_mp3_is_skipped() -> None:
    data = spoken(tone(1.0), "mp3", "libmp3lame")
    assert abs(len(load_audio(data + b"TAG" + bytes(125))) - RATE) < 1700
    assert abs(len(load_audio(data + b"\xff\xfb\x90\x00 nothing that can be decoded" * 3)) - RATE) < 1700


def test_the_sound_of_a_video_is_taken() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        video = container.add_stream("mpeg4", rate=5)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        audio = container.add_stream("aac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(1.0)[None], format="fltp", layout="mono")
        frame.sample_rate = RATE
        for part in av.AudioResampler("fltp", "mono", RATE, 1024).resample(frame):
            container.mux(audio.encode(part))
        container.mux(audio.encode(None))
        for _ in range(5):
            container.mux(video.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(video.encode(None))
    assert abs(len(load_audio(file.getvalue())) - RATE) < 2200


# What is refused

JPEG = encoded(picture(200, 150), "JPEG")
NOISE = np.random.default_rng(0).bytes(3000)

BAD_PICTURES = {
    "text": (b"just some words\n" * 9, ["found text", "expected PNG", "PNG or JPEG"]),
    "text in another script": ("ein süßer Käse aus 東京 ".encode() * 40, ["found text"]),
    "nothing": (b"", ["empty, 0 bytes"]),
    "noise": (NOISE, ["bytes of no known format"]),
    "a truncated jpeg": (JPEG[: len(JPEG) // 2], ["a JPEG picture", "damaged or cut off"]),
    "only the first bytes of a jpeg": (JPEG[:40], ["a JPEG picture", "damaged or cut off"]),
    "a truncated png": (encoded(picture(200, 150), "PNG")[:120], ["a PNG picture", "damaged or cut off"]),
    "a truncated webp": (encoded(picture(200, 150), "WEBP")[:60], ["a WEBP picture", "damaged or cut off"]),
    "a truncated gif": (encoded(picture(200, 150), "GIF")[:40], ["a GIF picture", "damaged or cut off"]),
    "a truncated bmp": (encoded(picture(200, 150), "BMP")[:900], ["a BMP picture", "damaged or cut off"]),
    "a truncated tiff": (encoded(picture(200, 150), "TIFF")[:900], ["a TIFF picture", "damaged or cut off"]),
    "a truncated packed tiff": (
        encoded(picture(200, 150), "TIFF", compression="tiff_lzw")[:-600],
        ["a TIFF picture", "damaged or cut off"],
    ),
    "a png of 50,000 x 50,000": (png_header(50_000, 50_000), ["50000 x 50000 pixels", "64,000,000", "smaller"]),
    "a png just over the limit": (png_header(8001, 8000), ["8001 x 8000 pixels", "64,000,000"]),
    "a png that lies about its size": (png_header(3000, 3000), ["a PNG picture", "damaged or cut off"]),
    "a png of no width": (png_header(0, 10), ["a PNG picture"]),
    "svg": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', ["SVG", "convert it to PNG"]),
    "bare svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', ["SVG", "convert it to PNG"]),
    "heic": (b"\0\0\0\x18ftypheic" + bytes(90), ["HEIC", "convert it to PNG"]),
    "avif": (b"\0\0\0\x18ftypavif" + bytes(90), ["AVIF", "convert it to PNG"]),
    "pdf": (b"%PDF-1.7\n" + NOISE, ["a PDF document"]),
    "a sound": (wav(pcm(tone())), ["found a wav sound", "expected PNG"]),
    "ppm": (encoded(picture(), "PPM"), ["bytes of no known format"]),
}

BAD_SOUNDS = {
    "text": (b"just some words\n" * 9, ["found text", "expected wav", "wav or flac"]),
    "a playlist": (b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n", ["found text"]),
    "a concat script": (b"ffconcat version 1.0\nfile /etc/hostname\n", ["found text"]),
    "nothing": (b"", ["empty, 0 bytes"]),
    "noise": (NOISE, ["bytes of no known format"]),
    "an empty wav": (wav(b""), ["no samples"]),
    "a wav of 10 hours in its header": (wav(pcm(tone()), claims=36_000 * RATE * 2), ["36,000.0 seconds", "600", "cut"]),
    "a wav without a size, too long": (
        wav(bytes(2 * 601 * 1000), rate=1000, claims=0xFFFFFFFF),
        ["60", "more than 600"],
    ),
    "a flac too long": (spoken(np.zeros(602 * 8000, np.float32), "flac", "flac", 8000), ["602.0 seconds", "600"]),
    "an mp3 too long": (spoken(np.zeros(610 * 8000, np.float32), "mp3", "libmp3lame", 8000), ["more than 600"]),
    "a wav at 1 Hz": (wav(pcm(tone()), rate=1), ["seconds, more than 600"]),
    "a wav at 400 Hz": (wav(pcm(tone()), rate=400), ["sampling rate 400 Hz", "1,000 to 768,000"]),
    "a wav at 2 GHz": (wav(pcm(tone()), rate=2_000_000_000), ["sampling rate 2,000,000,000 Hz"]),
    "a wav with NaN": (wav(np.full(800, np.nan, "<f4").tobytes(), bits=32, code=3), ["NaN or infinite"]),
    "a wav of an unknown codec": (wav(NOISE, code=0x7777), ["a wav sound"]),
    "a wav that stops in its header": (wav(b"")[:20], ["a wav sound"]),
    "a flac that is only a header": (spoken(tone(), "flac", "flac")[:300] + NOISE * 3, ["no samples"]),
    "an overwritten m4a": (overwritten(spoken(tone(2), "ipod", "aac")), ["damaged", "packets"]),
    "a video without sound": (silent_video(), ["an m4a or mp4 file without sound"]),
    "half an m4a": (spoken(tone(), "ipod", "aac")[:900], ["an m4a or mp4 file"]),
    "an ogg of nothing": (b"OggS" + NOISE, ["an ogg sound"]),
    "a webm of nothing": (b"\x1aE\xdf\xa3" + NOISE, ["a webm file"]),
    "a picture": (JPEG, ["found a JPEG picture", "expected wav"]),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_a_bad_picture_is_refused_in_one_line(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data, said = BAD_PICTURES[name]
    path = tmp_path / "cat.png"
    path.write_bytes(data)
    for line, called in (
        (refusal(load_image, path), f"{path}: "),
        (refusal(load_image, data), "picture from bytes: "),
        (refusal(load_image, io.BytesIO(data)), "picture from a file object: "),
        (refusal(load_image, data_url(data, "image/png")), "picture from a data: URL: "),
    ):
        assert line.startswith(called)
        assert all(words in line for words in said), line
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", BAD_SOUNDS)
def test_a_bad_sound_is_refused_in_one_line(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data, said = BAD_SOUNDS[name]
    path = tmp_path / "voice.wav"
    path.write_bytes(data)
    for line, called in (
        (refusal(load_audio, path), f"{path}: "),
        (refusal(load_audio, data), "sound from bytes: "),
        (refusal(load_audio, data_url(data, "audio/wav")), "sound from a data: URL: "),
    ):
        assert line.startswith(called)
        assert all(words in line for words in said), line
    assert capfd.readouterr() == ("", "")


class Endless(io.RawIOBase):
    """A pipe that never ends."""

    def read(self, size: int = -1) -> bytes:
        assert size >= 0, "read without a bound"
        return bytes(size)


@pytest.mark.parametrize("load", [load_image, load_audio])
def test_bad_sources_are_refused_in_one_line(load: Callable, tmp_path: Path) -> None:
    small = Limits(max_bytes=1000)
    large = tmp_path / "large.bin"
    large.write_bytes(bytes(1001))
    cases = [
        (tmp_path / "no.png", ["no.png: no such file", "check the path"]),
        (str(tmp_path / "no" / "no.png"), ["no such file"]),
        (str(large / "no.png"), ["cannot be read (Not a directory)"]),
        (tmp_path, ["a folder", "name one file in it"]),
        ("", ["no such file"]),
        ("a\0b.png", ["a\\x00b.png: cannot be read"]),
        ("a\nb.png", ["a\\nb.png: no such file"]),
        ("x" * 5000, ["cannot be read (File name too long)"]),
        (large, ["large.bin: more than 1,000 bytes (1,001)", "smaller file"]),
        (bytes(1001), ["more than 1,000 bytes (1,001)"]),
        (Endless(), ["more than 1,000 bytes"]),
        ("/dev/zero", ["more than 1,000 bytes"]),
        (data_url(bytes(1100), "image/png"), ["more than 1,000 bytes"]),
        ("data:image/png," + "%00" * 1100, ["more than 1,000 bytes"]),
        ("http://example.org/cat.png", ["example.org/cat.png: addresses are not fetched; download"]),
        ("https://example.org/" + "a" * 3000, ["addresses are not fetched"]),
        ("file:///etc/hostname", ["addresses are not fetched"]),
        ("data:image/png;base64", ["no comma"]),
        ("data:image/png;base64,", ["empty, 0 bytes"]),
        ("data:image/png;base64,iVBOR!!!", ["wrong base64", "encode the file again"]),
        ("data:image/png;base64,abcde", ["wrong base64"]),
        ("data:image/png;base64,\u00e9\u00e9", ["wrong base64"]),
        (io.StringIO("text"), ["a file object that gives str", "binary mode"]),
        (None, ["cannot be read from NoneType"]),
        ([1, 2, 3], ["cannot be read from list"]),
    ]
    for source, said in cases:
        line = refusal(load, source, small)
        assert all(words in line for words in said), line


def test_a_closed_file_is_refused(tmp_path: Path) -> None:
    file = io.BytesIO(JPEG)
    file.close()
    assert "cannot be read" in refusal(load_image, file)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((4, 4, 3), np.float32), "found float32 [4, 4, 3]; expected uint8 [height, width, 3]"),
        (np.zeros((4, 4, 4), np.uint8), "found uint8 [4, 4, 4]"),
        (np.zeros((3, 40, 40), np.uint8), "found uint8 [3, 40, 40]"),
        (np.zeros((1, 4, 4, 3), np.uint8), "found uint8 [1, 4, 4, 3]"),
        (np.zeros(12, np.uint8), "found uint8 [12]"),
        (np.zeros((0, 5, 3), np.uint8), "5 x 0 pixels"),
        (np.broadcast_to(np.uint8(0), (9000, 9000)), "9000 x 9000 pixels, more than 64,000,000"),
    ],
)
def test_a_bad_picture_array_is_refused(array: np.ndarray, said: str) -> None:
    assert said in refusal(load_image, array)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (np.zeros(0, np.float32), "no samples"),
        (np.zeros((0, 2), np.float32), "no samples"),
        (np.zeros((2, 16000), np.float32), "shape [2, 16000]; expected [samples] or [samples, channels]"),
        (np.zeros((5, 5, 5), np.float32), "shape [5, 5, 5]"),
        (np.zeros((), np.float32), "shape []"),
        (np.zeros((5, 0), np.float32), "shape [5, 0]"),
        (np.zeros(100, np.uint8), "uint8; expected int16, or floats"),
        (np.zeros(100, np.int32), "int32; expected int16"),
        (np.zeros(100, complex), "complex128; expected int16"),
        (np.array(["a", "b"]), "expected int16"),
        (np.array([0.1, np.nan]), "NaN or infinite"),
        (np.array([0.1, np.inf, -np.inf]), "NaN or infinite"),
        (np.array([[0.1, np.inf], [0.1, -np.inf]]), "NaN or infinite"),
        (np.array([1000.0, -32000.0]), "values up to 32000; expected [-1, 1]: divide"),
        (np.array([1e300]), "values up to 1e+300"),
        (np.broadcast_to(np.float32(0), (601 * RATE,)), "601.0 seconds, more than 600"),
        ((tone(), 5), "sampling rate 5 Hz"),
        ((tone(), -16000), "sampling rate -16,000 Hz"),
        ((RATE, tone()), "expected (array, sampling rate in Hz), in this order"),
        ((tone(),), "expected (array, sampling rate in Hz)"),
        ((tone(), 16000.0), "expected (array, sampling rate in Hz)"),
    ],
)
def test_a_bad_sound_array_is_refused(source, said: str) -> None:
    assert said in refusal(load_audio, source)


def test_a_picture_is_no_sound_and_a_sound_no_picture() -> None:
    assert "cannot be read from Image" in refusal(load_audio, picture())
    assert "cannot be read from tuple" in refusal(load_image, (tone(), RATE))


def test_a_pil_image_that_was_cut_off_is_refused() -> None:
    assert "cannot become RGB" in refusal(load_image, Image.open(io.BytesIO(JPEG[: len(JPEG) // 2])))


def test_limits_can_be_set() -> None:
    assert "40 x 30 pixels, more than 1,199" in refusal(load_image, picture(), Limits(max_pixels=1199))
    assert load_image(encoded(picture(), "PNG"), Limits(max_pixels=1200)).size == (40, 30)
    assert "0.5 seconds, more than 0.4" in refusal(load_audio, wav(pcm(tone())), Limits(max_seconds=0.4))
    assert len(load_audio(wav(pcm(tone())), Limits(max_seconds=0.5))) == 8000


def test_a_size_over_the_limit_is_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: decoded.append(image))
    refusal(load_image, png_header(50_000, 50_000))
    assert not decoded


@settings(max_examples=60)
@given(st.text(max_size=60))
def test_any_data_url_is_read_or_refused_in_one_line(text: str) -> None:
    for load in (load_image, load_audio):
        for url in (f"data:{text}", f"data:image/png;base64,{text}", f"data:,{text}"):
            refusal(load, url)


@settings(max_examples=60)
@given(
    st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"]),
    st.integers(0, 2000),
    st.binary(min_size=1, max_size=9),
)
def test_a_damaged_picture_is_read_or_refused_in_one_line(form: str, at: int, noise: bytes) -> None:
    data = encoded(picture(), form)
    at %= len(data)
    loaded, line = attempt(load_image, data[:at] + noise + data[at + len(noise) :], Limits(max_pixels=10**6))
    assert "\n" not in line
    assert line or loaded.mode == "RGB"


SPOKEN = {
    form: spoken(tone(0.2), form, codec) for form, codec in (("wav", "pcm_s16le"), ("flac", "flac"), ("ipod", "aac"))
}
SPOKEN |= {"ogg": spoken(tone(0.2), "ogg", "vorbis", layout="stereo"), "mp3": spoken(tone(0.2), "mp3", "libmp3lame")}
SPOKEN |= {"webm": spoken(tone(0.2), "webm", "libopus")}


@settings(max_examples=60)
@given(st.sampled_from(sorted(SPOKEN)), st.integers(0, 2000), st.binary(min_size=1, max_size=9))
def test_a_damaged_sound_is_read_or_refused_in_one_line(form: str, at: int, noise: bytes) -> None:
    data = SPOKEN[form]
    at %= len(data)
    wave, line = attempt(load_audio, data[:at] + noise + data[at + len(noise) :], Limits(max_seconds=5))
    assert "\n" not in line
    assert line or (wave.dtype == np.float32 and np.isfinite(wave).all() and 0 < len(wave) <= 5.1 * RATE)


def test_pictures_need_no_sound_library() -> None:
    code = "import sys, trisense.media; sys.exit('av' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
