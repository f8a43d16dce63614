"""Media of samples: read as they are, redrawn, in another style, or spoken when asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import tiny_pack

from trisense.chat import Image
from trisense.data.real.media import asked, medium
from trisense.data.real.pack import Pack, Ref
from trisense.data.real.sample import Sample, Spoken, is_picture
from trisense.data.world.draw import draw
from trisense.data.world.facts import Scene, Thing, Utterance
from trisense.data.world.speech import speak
from trisense.media import load_audio, load_image

EMOJI = Ref("image", "pictures/noto72", 3)


def test_views_of_a_picture(pack: Pack) -> None:
    plain = np.asarray(load_image(medium(pack, EMOJI)))
    assert np.array_equal(plain, np.asarray(load_image(tiny_pack.picture(3))))
    views = [np.asarray(load_image(medium(pack, EMOJI, view))) for view in (1, 2, 1)]
    assert np.array_equal(views[0], views[2]) and not np.array_equal(views[0], views[1])
    assert medium(pack, EMOJI, 1) == medium(pack, EMOJI, 1) != medium(pack, EMOJI, 2)
    style = medium(pack, Ref("image", "pictures/noto72", 3, style=5))
    assert style != medium(pack, EMOJI)
    drawn = np.asarray(load_image(style))
    assert drawn.shape == (72, 72, 3) and drawn.min() < 90 < 200 < drawn.max(), "dark lines on white"
    assert np.array_equal(drawn, np.asarray(load_image(medium(pack, Ref("image", "pictures/noto72", 3, style=5)))))


def test_of_a_spoilt_picture_nothing_is_left(pack: Pack) -> None:
    made = [medium(pack, replace(EMOJI, spoilt=number)) for number in (1, 2, 1)]
    assert made[0] == made[2] != made[1] != medium(pack, EMOJI)
    seen = [np.asarray(load_image(one)) for one in made]
    assert np.array_equal(seen[0], seen[2]) and not np.array_equal(seen[0], seen[1]) and seen[0].shape == (128, 128, 3)


def test_views_of_a_recording(pack: Pack) -> None:
    recording = Ref("audio", "speech/fsdd", 2)
    plain = load_audio(medium(pack, recording))
    views = [load_audio(medium(pack, recording, view)) for view in (1, 2, 1)]
    assert np.array_equal(views[0], views[2]) and len({len(plain), len(views[0]), len(views[1])}) == 3


def test_words_are_spoken_when_they_are_read(pack: Pack) -> None:
    heard = load_audio(medium(pack, Spoken("the red cup", 7)))
    np.testing.assert_allclose(heard, speak(Utterance("the red cup", "thing", style=7)), atol=1e-4)


def test_lettering_is_drawn_when_it_is_read(pack: Pack) -> None:
    scene = Scene((Thing("word", "blue", "large", 1, 1, text="apple"),), 4)
    assert np.array_equal(np.asarray(load_image(medium(pack, scene))), np.asarray(draw(scene)[0]))
    assert medium(pack, scene) == medium(pack, scene) != medium(pack, replace(scene, style=5))
    assert is_picture(scene) and is_picture(EMOJI)
    assert not is_picture(Spoken("a cup", 1)) and not is_picture(Ref("audio", "pictures/art4apps", 3))


def test_a_sample_is_a_conversation(pack: Pack) -> None:
    sample = Sample("x", (EMOJI, Spoken("a cup", 1), "There is a cup."), "Where is it?", "here")
    (message,) = asked(pack, sample).messages
    assert [part.type for part in message.content] == ["image", "audio", "text", "text"]
    assert isinstance(message.content[0], Image) and message.content[0].image == medium(pack, EMOJI)


def test_what_is_given_keeps_its_order(pack: Pack) -> None:
    """Training renders it as it stands; a model has to be asked the same way."""
    sample = Sample("x", (Spoken("a cup", 1), EMOJI), "Where is it?", "here")
    assert [part.type for part in asked(pack, sample).messages[0].content] == ["audio", "image", "text"]
