"""The only decoder: a path, bytes, a data: URL or an array -> an RGB picture, or mono 16 kHz sound, within limits.

Pictures are read by Pillow, sounds by PyAV, whose wheel brings its own codecs. What cannot be used is refused with one
line (BadInput) that names the source, what was found, what was expected and what to do; limits are checked on what the
header says before anything is decoded, and again while decoding, since headers lie.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import io
import os
import re
import stat
import struct
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image, ImageOps

from trisense.errors import BadInput

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

EXPECTED = {"picture": "PNG, JPEG, WebP, GIF, BMP or TIFF", "sound": "wav, flac, mp3, ogg, opus, m4a or webm"}
AUDIBLE = ("a wav sound", "a flac sound", "an ogg sound", "an mp3 sound", "an m4a or mp4 file", "a webm file")
# The demuxers of those sounds. Others, such as playlists, could open further files and are never tried.
DEMUXERS = "wav,flac,mp3,ogg,mov,matroska"

ImageSource = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | np.ndarray
AudioSource = str | os.PathLike[str] | bytes | BinaryIO | np.ndarray | tuple[np.ndarray, int]

# First bytes -> what they are, for the line that refuses them; the order matters where one begins like another.
SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (rb"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (rb"\xff\xd8\xff", "a JPEG picture"),
    (rb"GIF8", "a GIF picture"),
    (rb"RIFF....WEBP", "a WEBP picture"),
    (rb"BM.{12}[\x0c-\x80]\0\0\0", "a BMP picture"),
    (rb"II[*+]\0|MM\0[*+]", "a TIFF picture"),
    (rb"....ftyp(hei|hev|mif1|msf1|avi)", "a HEIC or AVIF picture"),
    (rb"\s*(<\?xml.*?)?(<!.*?)?<svg", "an SVG drawing"),
    (rb"%PDF", "a PDF document"),
    (rb"RIFF....WAVE", "a wav sound"),
    (rb"fLaC", "a flac sound"),
    (rb"OggS", "an ogg sound"),
    (rb"ID3|\xff[\xe2\xe3\xf2\xf3\xfa\xfb]", "an mp3 sound"),
    (rb"....ftyp", "an m4a or mp4 file"),
    (rb"\x1aE\xdf\xa3", "a webm file"),
)
# The pictures that are read, and the beginning of the names that Pillow's plugins give them.
PLUGINS = {f"a {name.upper()} picture": name for name in ("Png", "Jpeg", "Gif", "WebP", "Bmp", "Tiff")}


@dataclass(frozen=True)
class Limits:
    """What a picture or a sound may cost at most; larger ones are refused before they are decoded."""

    max_bytes: int = 64 * 2**20
    max_pixels: int = 64_000_000
    max_seconds: float = 600.0


def load_image(source: ImageSource, limits: Limits = Limits()) -> Image.Image:
    """Any picture -> an RGB PIL image: upright as its EXIF says, transparency on white, of a GIF the first frame.

    `source` is a path, encoded bytes, a binary file object (read from where it stands), a data: URL, a PIL image or a
    uint8 array [H, W, 3] or [H, W]. In 16-bit greys 65535 is white; of 32-bit greys white is 1 (floats only), 255 or
    65535, the first that no value exceeds, else they are stretched over their range. Colour profiles are not applied.

    Raises BadInput for everything else, for damaged pictures, and for more bytes or pixels than `limits` allow.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim not in (2, 3) or source.shape[2:] not in ((), (3,)):
            found = f"found {source.dtype} {list(source.shape)}"
            raise BadInput(f"picture from an array: {found}; expected uint8 [height, width, 3] or [height, width]")
        _check_size("picture from an array", source.shape[1], source.shape[0], limits)
        return Image.fromarray(np.ascontiguousarray(source)).convert("RGB")
    if isinstance(source, Image.Image):
        _check_size("picture", source.width, source.height, limits)
        return _finished(source, "picture", "a PIL image")
    name, data = _read(source, "picture", limits)
    if (found := _recognise(data)) not in PLUGINS:
        raise _unexpected(name, found, "picture")
    return _finished(_opened(data, found, name, limits), name, found)


def load_audio(source: AudioSource, limits: Limits = Limits(), sampling_rate: int = 16000) -> np.ndarray:
    """Any sound -> float32 [T], one channel (the mean of all) at `sampling_rate` Hz, clipped to [-1, 1].

    `source` is a path, encoded bytes, a binary file object (read from where it stands), a data: URL, an array [T] or
    [T, channels] of int16 or of floats in [-1, 1] that already has `sampling_rate`, or a pair (array, its rate).
    A file that ends early gives the sound up to there; of a video the sound is taken.

    Raises BadInput for everything else, for damaged sounds, and for more bytes or seconds than `limits` allow.
    """
    if isinstance(source, np.ndarray):
        source = (source, sampling_rate)
    if isinstance(source, tuple):
        if len(source) != 2 or not isinstance(source[0], np.ndarray) or not isinstance(source[1], int | np.integer):
            raise BadInput("sound from a tuple: expected (array, sampling rate in Hz), in this order")
        return _from_samples(source[0], int(source[1]), limits, sampling_rate)
    name, data = _read(source, "sound", limits)
    return _decoded(name, data, limits, sampling_rate)


def _read(source: Any, sense: str, limits: Limits) -> tuple[str, bytes]:
    """The name that messages use, and the encoded bytes, at most `limits.max_bytes` and at least one."""
    if isinstance(source, str) and source[:5].lower() == "data:":
        name, data = f"{sense} from a data: URL", _from_data_url(source, sense, limits)
    elif isinstance(source, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source):
        raise BadInput(f"{_shown(source)}: addresses are not fetched; download the {sense} and give the file")
    elif isinstance(source, str | os.PathLike):
        name = _shown(os.fspath(source))
        data = _from_path(source, name, sense, limits)
    elif isinstance(source, bytes | bytearray | memoryview):
        name, data = f"{sense} from bytes", bytes(source)
    elif hasattr(source, "read"):
        named = getattr(source, "name", None)  # a number for some
        name = _shown(named) if isinstance(named, str) and named else f"{sense} from a file object"
        data = _from_file(source, name, limits)
    else:
        raise BadInput(f"a {sense} cannot be read from {type(source).__name__}; give a path, bytes or an array")
    if len(data) > limits.max_bytes:
        raise _too_many_bytes(name, len(data), limits)
    if not data:
        raise BadInput(f"{name}: empty, 0 bytes; expected {EXPECTED[sense]}")
    return name, data


def _from_path(path: str | os.PathLike[str], name: str, sense: str, limits: Limits) -> bytes:
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise BadInput(f"{name}: a folder; expected {EXPECTED[sense]}: name one file in it")
        if status.st_size > limits.max_bytes:
            raise _too_many_bytes(name, status.st_size, limits)
        with open(path, "rb") as file:
            return _from_file(file, name, limits)
    except BadInput:
        raise
    except FileNotFoundError:
        raise BadInput(f"{name}: no such file; check the path of the {sense}") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise BadInput(f"{name}: cannot be read ({_reason(error)}); check the path of the {sense}") from error


def _from_file(file: Any, name: str, limits: Limits) -> bytes:
    try:
        # One byte more than allowed tells a pipe that never ends from one that fits.
        data = file.read(limits.max_bytes + 1)
    except (OSError, ValueError) as error:
        raise BadInput(f"{name}: cannot be read ({_reason(error)})") from error
    if not isinstance(data, bytes):
        raise BadInput(f"{name}: a file object that gives {type(data).__name__}; open it in binary mode ('rb')")
    return data


def _from_data_url(url: str, sense: str, limits: Limits) -> bytes:
    head, comma, body = url.partition(",")
    if not comma:
        raise BadInput(f"{sense} from a data: URL: no comma; expected data:<type>;base64,<data>")
    in_base64 = head.lower().endswith(";base64")
    if len(body) * (3 / 4 if in_base64 else 1 / 3) > limits.max_bytes + 3:
        raise _too_many_bytes(f"{sense} from a data: URL", len(body) * 3 // 4, limits)
    if not in_base64:
        return unquote_to_bytes(body)
    try:
        # Line breaks are common in encoded files, and a percent sign may stand for + / or =.
        return base64.b64decode(b"".join(unquote_to_bytes(body).split()), validate=True)
    except binascii.Error as error:
        raise BadInput(f"{sense} from a data: URL: wrong base64 ({_reason(error)}); encode the file again") from error


def _too_many_bytes(name: str, found: int, limits: Limits) -> BadInput:
    return BadInput(f"{name}: more than {limits.max_bytes:,} bytes ({found:,}); give a smaller file")


def _recognise(data: bytes) -> str:
    """What the first bytes say this is, in words."""
    head = data[:512]
    for pattern, found in SIGNATURES:
        if re.match(pattern, head, re.DOTALL):
            return found
    words = head.decode("utf-8", "ignore")
    readable = len(words.encode()) > len(head) - 4 and all(c.isprintable() or c.isspace() for c in words)
    return "text" if readable else "bytes of no known format"


def _unexpected(name: str, found: str, sense: str) -> BadInput:
    known = "PNG or JPEG" if sense == "picture" else "wav or flac"
    return BadInput(f"{name}: found {found}; expected {EXPECTED[sense]}: convert it to {known}, or give another file")


def _shown(name: str | bytes) -> str:
    """A name that fits into one line, whatever it holds."""
    text = os.fsdecode(name)
    text = text if len(text) <= 160 else f"{text[:100]}...{text[-50:]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text) or "''"


def _reason(error: BaseException) -> str:
    """A decoder's own words, as one short line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return _shown(text.strip().splitlines()[0])


# Pillow warns about damaged tags; catch_warnings is not safe for threads, so the headers are read one at a time.
_quiet = threading.Lock()


def _opened(data: bytes, found: str, name: str, limits: Limits) -> Image.Image:
    """The picture, its size checked and its pixels decoded.

    The plugin is called directly: Image.open imports the plugins of forty other formats and has a pixel limit of its
    own, which is one for the whole process and hides the size it found.
    """
    plugin = importlib.import_module(f"PIL.{PLUGINS[found]}ImagePlugin")
    try:
        with _quiet, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = getattr(plugin, f"{PLUGINS[found]}ImageFile")(io.BytesIO(data))
            _check_size(name, image.width, image.height, limits)
            if PLUGINS[found] == "Tiff":
                image.load()  # turns the picture by its tags, and warns about them, while loading
        image.load()
    except BadInput:
        raise
    except Exception as error:  # hostile bytes make the plugins raise nearly anything
        raise BadInput(f"{name}: {found}, but damaged or cut off ({_reason(error)}); get the file again") from error
    return image


def _check_size(name: str, width: int, height: int, limits: Limits) -> None:
    if width < 1 or height < 1:
        raise BadInput(f"{name}: {width} x {height} pixels; expected at least one")
    if width * height > limits.max_pixels:
        raise BadInput(f"{name}: {width} x {height} pixels, more than {limits.max_pixels:,} in all; make it smaller")


def _finished(image: Image.Image, name: str, found: str) -> Image.Image:
    try:
        image.load()
        return _on_white(_upright(image))
    except Exception as error:  # a PIL image that was opened elsewhere decodes here, and rare modes may not convert
        raise BadInput(f"{name}: {found} that cannot become RGB ({_reason(error)}); convert it to PNG") from error


def _upright(image: Image.Image) -> Image.Image:
    # Broken EXIF does not spoil the picture: like every viewer, show it as it is stored.
    with suppress(Exception), _quiet, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ImageOps.exif_transpose(image)
    return image


def _on_white(image: Image.Image) -> Image.Image:
    """Any mode -> a new RGB image."""
    if image.mode.startswith(("I", "F")):
        ceilings = {"I": (255, 65535), "F": (1, 255, 65535)}.get(image.mode, (65535,))
        return Image.fromarray(_grey(np.asarray(image), ceilings)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        return white.convert("RGB")
    return image.convert("RGB")


def _grey(values: np.ndarray, ceilings: Iterable[float]) -> np.ndarray:
    """Greys of any range [H, W] -> uint8 [H, W]: white is the first ceiling that none exceeds."""
    values = np.nan_to_num(values.astype(np.float32), posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    top = next((ceiling for ceiling in ceilings if low >= 0 and high <= ceiling), None)
    low, high = (0.0, top) if top else (low, high)
    return np.rint((values - low) * (255.0 / ((high - low) or 1.0))).astype(np.uint8)


def _decoded(name: str, data: bytes, limits: Limits, sampling_rate: int) -> np.ndarray:
    import av

    found = _recognise(data)
    _check_seconds(name, _wav_seconds(data) if found == "a wav sound" else 0.0, limits)
    try:
        options = {"format_whitelist": DEMUXERS}
        with av.open(io.BytesIO(data), "r", options=options, metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise BadInput(f"{name}: found {found} without sound; expected {EXPECTED['sound']}")
            # The length of an mp3 is a guess from its bit rate: there only what is decoded counts.
            if container.duration and container.format.name != "mp3":
                _check_seconds(name, container.duration / av.time_base, limits)
            return _mixed(name, _frames(container, name, limits), sampling_rate)
    except BadInput:
        raise
    except Exception as error:  # libav's errors are of many kinds, and PyAV adds its own
        if found not in AUDIBLE:
            raise _unexpected(name, found, "sound") from error
        raise BadInput(
            f"{name}: {found}, but damaged or of a rare kind ({_reason(error)}); convert it to wav"
        ) from error


def _wav_seconds(data: bytes) -> float:
    """The length that a wav header claims; 0 when it claims none. (libav looks at the size of the file instead.)"""
    rate, at = 0, 12
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, at)
        if kind == b"fmt " and at + 20 <= len(data):
            rate = struct.unpack_from("<I", data, at + 16)[0]  # bytes per second
        if kind == b"data":
            # What writes to a pipe cannot know the size, and fills in the largest.
            return size / rate if rate and size < 0x7FFFFF00 else 0.0
        at += 8 + size + size % 2
    return 0.0


def _check_seconds(name: str, seconds: float, limits: Limits) -> None:
    if seconds > limits.max_seconds:
        raise BadInput(f"{name}: {seconds:,.1f} seconds, more than {limits.max_seconds:g}; cut the sound")


def _check_rate(name: str, rate: int) -> None:
    if not 1000 <= rate <= 768_000:
        raise BadInput(f"{name}: sampling rate {rate:,} Hz; expected 1,000 to 768,000: convert it to 16,000")


def _frames(container: InputContainer, name: str, limits: Limits) -> Iterator[av.AudioFrame]:
    """The decoded frames, counted before they are resampled. A few packets that cannot be decoded are skipped, as
    players skip them (a tag after the last frame of an mp3 is one); with more of them the sound is refused."""
    from av import AudioFrame
    from av.error import InvalidDataError

    seconds, packets, damaged = 0.0, 0, 0
    for packet in container.demux(audio=0):
        packets += 1
        try:
            frames = packet.decode()
        except InvalidDataError:
            damaged += 1
            continue
        for frame in frames:
            assert isinstance(frame, AudioFrame)
            _check_rate(name, frame.sample_rate)
            seconds += frame.samples / frame.sample_rate
            _check_seconds(name, seconds, limits)
            yield frame
    if damaged > (1 + packets // 20 if seconds else 0):
        raise BadInput(f"{name}: damaged, {damaged} of {packets} packets cannot be decoded; get the file again")


def _mixed(name: str, frames: Iterable[av.AudioFrame], sampling_rate: int) -> np.ndarray:
    """Frames of any format -> float32 [T]: the mean of the channels (libav's own downmix to float is louder)."""
    import av

    resampler = av.AudioResampler(format="fltp", rate=sampling_rate)
    resampled = (part for frame in chain(frames, (None,)) for part in resampler.resample(frame))  # None: the rest
    parts = [part.to_ndarray().mean(axis=0) for part in resampled if part]  # [C, t] -> [t]
    return _bounded(name, np.concatenate(parts) if parts else np.zeros(0, np.float32))


def _bounded(name: str, wave: np.ndarray) -> np.ndarray:
    if not len(wave):
        raise BadInput(f"{name}: no samples found; expected at least one: record or copy the sound again")
    if not np.isfinite(wave).all():
        raise BadInput(f"{name}: NaN or infinite samples; expected values in [-1, 1]: make the sound again")
    return np.clip(wave, -1.0, 1.0).astype(np.float32, copy=False)


def _from_samples(samples: np.ndarray, rate: int, limits: Limits, sampling_rate: int) -> np.ndarray:
    name = "sound from an array"
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and not 1 <= samples.shape[1] <= 64):
        raise BadInput(f"{name}: shape {list(samples.shape)}; expected [samples] or [samples, channels]")
    whole = samples.dtype.kind == "i" and samples.dtype.itemsize == 2  # in either byte order
    if not whole and samples.dtype.kind != "f":
        raise BadInput(f"{name}: {samples.dtype}; expected int16, or floats in [-1, 1]: convert it first")
    _check_rate(name, rate)
    _check_seconds(name, len(samples) / rate, limits)
    peak = float(np.abs(samples).max(initial=0)) if not whole else 0.0
    if 2 < peak < np.inf:
        raise BadInput(f"{name}: values up to {peak:g}; expected [-1, 1]: divide by the largest possible value")
    wave = _bounded(name, samples / np.float32(32768 if whole else 1))
    wave = wave.reshape(len(wave), -1).mean(axis=1)  # [T, C] -> [T]
    if rate == sampling_rate:
        return wave
    import av

    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave[None]), format="fltp", layout="mono")
    frame.sample_rate = rate
    return _mixed(name, [frame], sampling_rate)
