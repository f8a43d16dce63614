"""Pictures and sounds of samples as media that are read like files: also other views of them, and words that are spoken
when they are asked for."""

from __future__ import annotations

import io
import wave

import numpy as np
from PIL import Image as Picture

from trisense.chat import Audio, Conversation, Image, Message, Text
from trisense.data.real.pack import Pack
from trisense.data.real.sample import Given, Medium, Sample, Spoken, is_picture
from trisense.data.real.style import in_other_style
from trisense.data.sources.stores import Embedded
from trisense.data.world.draw import draw
from trisense.data.world.facts import Scene, Utterance
from trisense.data.world.speech import SAMPLING_RATE, speak
from trisense.media import load_audio


def asked(pack: Pack, sample: Sample) -> Conversation:
    """A sample as a conversation that is not yet answered, its media to be read, in the order of what is given."""

    def part(one: Given) -> Image | Audio | Text:
        if isinstance(one, str):
            return Text(text=one)
        return Image(image=medium(pack, one)) if is_picture(one) else Audio(audio=medium(pack, one))

    parts = (*map(part, sample.given), Text(text=sample.question))
    return Conversation(messages=(Message(role="user", content=parts),))


def medium(pack: Pack, given: Medium, view: int = 0) -> Embedded:
    """What a picture or sound is read from. view: 0 as it is; others redraw a picture or say a recording again, each
    in its own way. Equal for equal arguments, as features that are kept for it need."""
    return Embedded(f"{given}, view {view}" if view else str(given), lambda size: _made(pack, given, view))


def _made(pack: Pack, given: Medium, view: int) -> bytes:
    """The encoded bytes of a medium."""
    if isinstance(given, Spoken):
        return _wav(speak(Utterance(given.words, "thing", style=given.style)))
    if isinstance(given, Scene):
        return _png(draw(given)[0])
    encoded = pack.medium(given)
    if view:
        return (_redrawn if given.sense == "image" else _respoken)(encoded, view)
    if given.spoilt:
        return _spoilt(encoded, given.spoilt)
    return _png(in_other_style(_opened(encoded), given.style)) if given.style else encoded


def _opened(encoded: bytes) -> Picture.Image:
    return Picture.open(io.BytesIO(encoded)).convert("RGB")


def _png(picture: Picture.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "png")
    return out.getvalue()


def _redrawn(encoded: bytes, view: int) -> bytes:
    """The picture as PNG, redrawn as `view` and its size and bytes decide."""
    import torch

    from trisense.data.real.augment import redrawn

    pixels = np.asarray(_opened(encoded), np.float32) / 255
    rng = np.random.default_rng((view, *encoded[-16:]))
    picture = redrawn(torch.from_numpy(pixels.transpose(2, 0, 1))[None], rng)[0]
    return _pixels(picture.numpy())


def _spoilt(encoded: bytes, number: int) -> bytes:
    """A picture of nothing made of this one, as PNG, as `number` decides."""
    import torch

    from trisense.data.real.augment import nameless

    pixels = np.asarray(_opened(encoded).resize((128, 128), Picture.Resampling.BICUBIC), np.float32) / 255
    picture = nameless(torch.from_numpy(pixels.transpose(2, 0, 1))[None], np.random.default_rng(number))[0]
    return _pixels(picture.numpy())


def _pixels(picture: np.ndarray) -> bytes:
    """A picture [3, H, W], 0 to 1, as PNG."""
    return _png(Picture.fromarray((picture.transpose(1, 2, 0) * 255).round().astype(np.uint8)))


def _respoken(encoded: bytes, view: int) -> bytes:
    """The recording as wav, said again as `view` and its size and bytes decide."""
    from trisense.data.real.augment import respoken

    return _wav(respoken(load_audio(encoded), np.random.default_rng((view, *encoded[-16:]))))


def _wav(sound: np.ndarray) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLING_RATE)
        file.writeframes((sound * 32767).astype("<i2").tobytes())
    return out.getvalue()
