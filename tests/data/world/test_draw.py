"""Pictures of the small world: a function of the facts, with boxes that hold what was drawn."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys

import numpy as np
import pytest

from trisense.data.world import draw as module
from trisense.data.world.draw import draw
from trisense.data.world.facts import COLOURS, KINDS, SIGNS, SIZES, Scene, Thing
from trisense.errors import BadInput


def a_scene(seed: int, count: int = 4) -> Scene:
    rng = random.Random(seed)
    cells = rng.sample([(row, column) for row in range(3) for column in range(3)], count)
    things = []
    for row, column in cells:
        kind = rng.choice((*KINDS, "number", "word"))
        text = {"number": str(rng.randrange(10)), "word": rng.choice(SIGNS)}.get(kind, "")
        shift = rng.uniform(-0.2, 0.2), rng.uniform(-0.2, 0.2)
        things.append(Thing(kind, rng.choice(list(COLOURS)), rng.choice(SIZES), row, column, *shift, text))
    return Scene(tuple(things), seed)


def pixels(scene: Scene, size: int = 96) -> np.ndarray:
    return np.asarray(draw(scene, size)[0]).astype(int)  # [H, W, 3]


def difference(scene: Scene, size: int = 96) -> np.ndarray:
    """How far each pixel is from the same picture without its things, [H, W]."""
    return np.abs(pixels(scene, size) - pixels(Scene((), scene.style), size)).max(axis=2)


@pytest.mark.parametrize("size", [48, 96, 224])
def test_size_and_mode(size: int) -> None:
    picture, boxes = draw(a_scene(1), size)
    assert picture.size == (size, size)
    assert picture.mode == "RGB"
    assert [box.thing for box in boxes] == list(a_scene(1).things)


def test_same_scene_same_bytes_and_other_style_other_bytes() -> None:
    scene = a_scene(3)
    assert draw(scene)[0].tobytes() == draw(scene)[0].tobytes()
    assert draw(scene)[1] == draw(scene)[1]
    assert draw(scene)[0].tobytes() != draw(Scene(scene.things, 4))[0].tobytes()


def test_another_process_draws_the_same_bytes() -> None:
    thing = Thing("word", "blue", "large", 0, 2, text="shop")
    program = (
        "import hashlib; from trisense.data.world.draw import draw; from trisense.data.world.facts import Scene, Thing;"
        f"print(hashlib.sha256(draw(Scene(({thing!r},), 11))[0].tobytes()).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    assert there == hashlib.sha256(draw(Scene((thing,), 11))[0].tobytes()).hexdigest()


@pytest.mark.parametrize("size", [96, 224])
def test_boxes_hold_the_drawing_and_are_tight(size: int) -> None:
    for style, kind in enumerate((*KINDS, "number", "word")):
        text = {"number": "8", "word": "milk"}.get(kind, "")
        for corner in (0, 1, 2):
            thing = Thing(kind, "blue", SIZES[style % 2], corner, corner, 0.1, -0.1, text)
            _, (box,) = draw(Scene((thing,), style), size)
            changed = np.argwhere(difference(Scene((thing,), style), size) > 30)
            (top, left), (bottom, right) = changed.min(axis=0), changed.max(axis=0) + 1
            assert box.x0 <= left, kind
            assert box.y0 <= top, kind
            assert right <= box.x1, kind
            assert bottom <= box.y1, kind
            slack = max(left - box.x0, top - box.y0, box.x1 - right, box.y1 - bottom)
            assert slack < 0.035 * size, kind
            assert min(box.x0, box.y0) >= 0, kind
            assert max(box.x1, box.y1) <= size, kind


def test_a_thing_stands_where_its_facts_say() -> None:
    for kind in (*KINDS, "number"):
        for row, column in ((0, 0), (1, 1), (2, 1)):
            thing = Thing(kind, "red", "small", row, column, 0.1, 0.1, "4" if kind == "number" else "")
            _, (box,) = draw(Scene((thing,), row), 96)
            x, y = (box.x0 + box.x1) / 2 / 96, (box.y0 + box.y1) / 2 / 96
            assert abs(x - thing.centre[0]) < 0.06
            assert abs(y - thing.centre[1]) < 0.06


def test_large_is_clearly_larger_than_small() -> None:
    for style, kind in enumerate((*KINDS, "number")):
        text = "3" if kind == "number" else ""
        areas = {}
        for size in SIZES:
            _, (box,) = draw(Scene((Thing(kind, "green", size, 1, 1, text=text),), style))
            areas[size] = (box.x1 - box.x0) * (box.y1 - box.y0)
        assert areas["large"] > 1.6 * areas["small"], kind


def nearest_colour(rgb: np.ndarray) -> str:
    return min(COLOURS, key=lambda name: float(((rgb - np.array(COLOURS[name])) ** 2).sum()))


@pytest.mark.parametrize("colour", COLOURS)
def test_the_colour_of_every_kind_is_unmistakable(colour: str) -> None:
    for style, kind in enumerate((*KINDS, "number")):
        thing = Thing(kind, colour, "large", 1, 1, text="8" if kind == "number" else "")
        picture = pixels(Scene((thing,), style))
        ink = picture[difference(Scene((thing,), style)) > 60]  # [N, 3]
        names = [nearest_colour(pixel) for pixel in ink]
        counts = {name: names.count(name) for name in set(names)}
        assert max(counts, key=counts.__getitem__) == colour, (kind, counts)


def test_every_kind_in_every_colour_looks_different() -> None:
    small = {}
    for kind in KINDS:
        for colour in COLOURS:
            small[kind, colour] = pixels(Scene((Thing(kind, colour, "large", 1, 1),), 5))[28:68, 28:68]
    names = list(small)
    stack = np.stack([small[name] for name in names]).reshape(len(names), -1)  # [N, P]
    for i, name in enumerate(names[:-1]):
        far = np.abs(stack[i + 1 :] - stack[i]).mean(axis=1)
        # 2 levels over the whole window is 20 on a tenth of it: the least share that a key, the thinnest kind, covers
        assert far.min() > 2.0, (name, names[i + 1 + int(far.argmin())])


def test_text_is_drawn_in_several_fonts() -> None:
    seen = {pixels(Scene((Thing("word", "black", "large", 1, 1, text="open"),), style)).tobytes() for style in range(8)}
    assert len(seen) == 8
    widths = []
    for style in range(30):
        _, (box,) = draw(Scene((Thing("word", "black", "large", 1, 0, text="bank"),), style))
        widths.append((box.x1 - box.x0) / 96)
    assert max(widths) < 0.42
    assert min(widths) > 0.25


def test_backgrounds_are_light_and_varied() -> None:
    means = np.array([pixels(Scene((), style)).mean() for style in range(40)])
    assert means.min() > 190
    assert means.std() > 3


@pytest.mark.parametrize(
    ("thing", "named"),
    [
        (Thing("dragon", "red", "small", 0, 0), "dragon"),
        (Thing("cup", "teal", "small", 0, 0), "teal"),
        (Thing("cup", "red", "huge", 0, 0), "huge"),
        (Thing("word", "red", "small", 0, 0), "word"),
        (Thing("cup", "red", "small", 0, 0, text="tea"), "tea"),
    ],
)
def test_unknown_facts_are_named(thing: Thing, named: str) -> None:
    with pytest.raises(BadInput, match=named):
        draw(Scene((thing,)))


def test_too_small_a_picture_is_refused() -> None:
    with pytest.raises(BadInput, match="8"):
        draw(Scene(()), 8)


def test_a_missing_font_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FONTS", (("font_of_nobody", "Nobody.ttf"),))
    with pytest.raises(BadInput, match=r"font-of-nobody.*trisense\[world\]"):
        draw(Scene((Thing("number", "red", "small", 0, 0, text="1"),)))
