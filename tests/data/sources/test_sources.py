"""Files of others become conversations: what was asked, what was answered, and where the picture is."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import decoded, jpeg, pixels, said, write_json, write_lines, write_zip

from trisense.chat import Conversation, Image
from trisense.data.sources import Source, media_of, open_source
from trisense.errors import BadInput
from trisense.media import load_image


def source(folder: Path, content: Any, **options: Any) -> Source:
    return open_source(write_json(folder / "data.json", content), **options)


LLAVA = [
    {
        "id": "1",
        "image": "1.jpg",
        "conversations": [
            {"from": "human", "value": "What is it?\n<image>"},
            {"from": "gpt", "value": "A cat."},
            {"from": "human", "value": "Is it black?"},
            {"from": "gpt", "value": "No."},
        ],
    },
    {"id": "2", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
]


def test_llava_whole_conversations(tmp_path: Path):
    found = source(tmp_path, LLAVA)
    assert len(found) == 2
    assert said(found[0]) == [
        ("user", ["[1.jpg]", "What is it?"]),
        ("assistant", ["A cat."]),
        ("user", ["Is it black?"]),
        ("assistant", ["No."]),
    ]
    assert media_of(found[0]) == [str(tmp_path / "1.jpg")]
    assert said(found[1]) == [("user", ["Hi"]), ("assistant", ["Hello"])]


def test_llava_one_sample_for_each_question(tmp_path: Path):
    found = source(tmp_path, LLAVA, turns=True)
    assert [said(one) for one in found] == [
        [("user", ["[1.jpg]", "What is it?"]), ("assistant", ["A cat."])],
        [("user", ["[1.jpg]", "Is it black?"]), ("assistant", ["No."])],
        [("user", ["Hi"]), ("assistant", ["Hello"])],
    ]
    assert [found.where(i).removeprefix(str(tmp_path)) for i in range(3)] == [
        "/data.json: record 0",
        "/data.json: record 0",
        "/data.json: record 1",
    ]


def test_llava_pretrain_558k(tmp_path: Path):
    """`blip_laion_cc_sbu_558k.json`: pictures in numbered folders, the picture's place before or after the request."""
    records = [
        {
            "id": "004539375",
            "image": "00453/004539375.jpg",
            "conversations": [
                {"from": "human", "value": "Render a clear and concise summary of the photo.\n<image>"},
                {"from": "gpt", "value": "select luxury furniture 3 - inch gel memory foam mattress topper"},
            ],
        },
        {
            "id": "002239345",
            "image": "00223/002239345.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nWrite a terse but informative summary of the picture."},
                {"from": "gpt", "value": "a grey watch with an army style strap"},
            ],
        },
    ]
    file = write_json(tmp_path / "blip_laion_cc_sbu_558k.json", records)
    for record in records:
        (tmp_path / "images" / record["image"]).parent.mkdir(parents=True)
        (tmp_path / "images" / record["image"]).write_bytes(jpeg(int(record["id"])))
    found = open_source(file, tmp_path / "images", turns=True)
    found.check_media()
    assert said(found[1]) == [
        ("user", ["[002239345.jpg]", "Write a terse but informative summary of the picture."]),
        ("assistant", ["a grey watch with an army style strap"]),
    ]
    assert np.array_equal(pixels(found[0])[0], decoded(jpeg(4539375)))


def test_llava_instruct_with_the_pictures_of_2014(tmp_path: Path):
    """LLaVA-Instruct-150K names pictures as 2017 does; they are those of train2014."""
    records = [{**LLAVA[0], "image": f"{number:012}.jpg"} for number in range(3)]
    members = {f"train2014/COCO_train2014_{number:012}.jpg": jpeg(number) for number in range(3)}
    found = source(tmp_path, records, media=write_zip(tmp_path / "train2014.zip", members))
    found.check_media()
    assert [np.array_equal(pixels(one)[0], decoded(jpeg(number))) for number, one in enumerate(found)] == [True] * 3


questions = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(st.lists(st.tuples(questions, questions), min_size=1, max_size=5))
def test_our_own_record_survives(tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]):
    folder = tmp_path_factory.mktemp("ours")
    written = [Conversation.ask(q, images=["a.png"]).answered(a) for q, a in pairs]
    found = open_source(write_lines(folder / "ours.jsonl", [one.to_dict() for one in written]))
    assert len(found) == len(pairs)
    for one, (question, answer) in zip(found, pairs, strict=True):
        assert said(one) == [("user", ["[a.png]", question]), ("assistant", [answer])]
    picture = found[0].messages[0].content[0]
    assert isinstance(picture, Image) and picture.image == str(folder / "a.png")


def test_openais_messages_with_pictures_and_sounds_inside_and_outside(tmp_path: Path):
    data_url = "data:image/jpeg;base64," + base64.b64encode(jpeg(2)).decode()
    lines = [
        {
            "messages": [
                {"role": "developer", "content": "Be short."},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "Which?"},
                        {"type": "image_url", "image_url": {"url": data_url, "detail": "low"}},
                        {"type": "image_url", "image_url": {"url": "a/1.png"}},
                    ],
                },
                {"role": "assistant", "content": "This.", "weight": 1},
            ]
        },
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "input_audio",
                            "input_audio": {"data": base64.b64encode(b"RIFF").decode(), "format": "wav"},
                        },
                        {"type": "input_audio", "input_audio": {"data": "voice.wav", "format": "wav"}},
                    ],
                },
                {"role": "assistant", "content": [{"type": "text", "text": "Hello"}]},
            ]
        },
    ]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(jpeg(1))
    found = open_source(write_lines(tmp_path / "chat.jsonl", lines))
    assert [role for role, _ in said(found[0])] == ["system", "user", "assistant"]
    inside, outside = media_of(found[0])
    assert outside == str(tmp_path / "a" / "1.png")
    assert np.array_equal(np.asarray(load_image(inside)), decoded(jpeg(2)))
    assert str(inside) == f"{tmp_path / 'chat.jsonl'}: line 1, image 0" and inside == media_of(found[0])[0]
    inside, outside = media_of(found[1])
    assert inside.read() == b"RIFF" and str(inside) == f"{tmp_path / 'chat.jsonl'}: line 2, audio 0"
    assert outside == str(tmp_path / "voice.wav")


def test_each_answer_keeps_the_media_that_were_shown_before_it(tmp_path: Path):
    turns = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "image", "image": "1.png"}, {"type": "text", "text": "First?"}]},
        {"role": "assistant", "content": "One."},
        {"role": "user", "content": [{"type": "image", "image": "2.png"}, {"type": "text", "text": "Second?"}]},
        {"role": "assistant", "content": "Two."},
    ]
    found = source(tmp_path, {"messages": turns}, turns=True)
    assert [said(one) for one in found] == [
        [("system", ["Be short."]), ("user", ["[1.png]", "First?"]), ("assistant", ["One."])],
        [("system", ["Be short."]), ("user", ["[1.png]", "[2.png]", "Second?"]), ("assistant", ["Two."])],
    ]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (
            {
                "images": ["1.png", "2.png"],
                "messages": [
                    {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Q"}]},
                    {"role": "assistant", "content": [{"type": "text", "text": "A"}]},
                ],
            },
            [("user", ["[1.png]", "[2.png]", "Q"]), ("assistant", ["A"])],
        ),
        (
            {
                "images": ["1.png"],
                "messages": [{"role": "user", "content": "<image>Q"}, {"role": "assistant", "content": "A"}],
            },
            [("user", ["[1.png]", "Q"]), ("assistant", ["A"])],
        ),
        (
            {
                "image": "1.png",
                "audio": "1.wav",
                "messages": [
                    {"role": "user", "content": [{"type": "image", "image": "1.png"}, {"type": "text", "text": "Q"}]},
                    {"role": "assistant", "content": "A"},
                ],
            },
            [("user", ["[1.png]", "Q"]), ("assistant", ["A"])],
        ),
        (
            {"images": ["1.png"], "texts": [{"user": "Q", "assistant": "A", "source": "x"}]},
            [("user", ["[1.png]", "Q"]), ("assistant", ["A"])],
        ),
        (
            {"image": "1.png", "question": "Q", "answers": ["A", "B"]},
            [("user", ["[1.png]", "Q"]), ("assistant", ["A"])],
        ),
        ({"audio": "1.wav", "text": " A\nB"}, [("user", ["[1.wav]"]), ("assistant", ["A B"])]),
    ],
)
def test_other_forms_of_one_record(tmp_path: Path, record: dict[str, Any], expected: list[tuple[str, list[str]]]):
    assert said(source(tmp_path, [record])[0]) == expected


def test_what_looks_like_a_place_of_a_picture_is_text_where_no_picture_is(tmp_path: Path):
    turns = [{"from": "human", "value": "What is <image> in RSS?"}, {"from": "gpt", "value": "<image> is a tag."}]
    assert said(source(tmp_path, [{"conversations": turns}])[0]) == [
        ("user", ["What is <image> in RSS?"]),
        ("assistant", ["<image> is a tag."]),
    ]


def test_several_captions_are_several_samples(tmp_path: Path):
    found = source(tmp_path, [{"image": "1.png", "caption": ["A dog.", "An animal."]}])
    assert [said(one)[1] for one in found] == [("assistant", ["A dog."]), ("assistant", ["An animal."])]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "holds no conversation"),
        ("[]", "holds no conversation"),
        ("{", "not JSON"),
        ("nothing at all", "not JSON"),
        ('[{"a": 1}, ]', "not JSON (Expecting another element after the comma"),
        ("[" * 5000, "nested too deeply"),
        ('{"a": 1}', "of no kind that is known"),
        ('{"images": [], "annotations": [{"id": 1}]}', "neither a `caption` nor a `bbox`"),
        ('{"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "x"}]}', "KeyError: 'file_name'"),
        (
            '{"images": [{"id": 1}], "annotations": [{"image_id": 2, "caption": "x"}]}',
            "data.json has no image of the id 2",
        ),
        ('[{"conversations": [{"from": "cat", "value": "x"}]}]', "record 0: said by 'cat'; expected one of human"),
        ('[{"conversations": [{"from": "gpt"}]}]', "record 0: not as expected (KeyError: 'value')"),
        ('[{"conversations": [{"from": "human", "value": "x"}]}]', "record 0: nothing is answered in it"),
        ('{"messages": [{"role": "user"}]}', "line 1: messages[0]: expected 'content' as a string or a list of parts"),
        (
            '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": 0}]}',
            "an answer of weight 0; only 1 is learned",
        ),
        (
            '[{"image": "https://example.org/1.jpg", "caption": "x"}]',
            "addresses are not fetched; download it and give its path",
        ),
        ('[{"image": 7, "caption": "x"}]', "a picture or sound is named by int; expected its path"),
        (r'[{"image": "1.jpg", "caption": "\ud800"}]', "record 0: not as expected (UnicodeEncodeError"),
    ],
)
def test_what_is_no_source_is_one_line_that_names_it(tmp_path: Path, content: str, expected: str):
    with pytest.raises(BadInput) as refused:
        list(source(tmp_path, content))
    assert str(refused.value).startswith(str(tmp_path / "data.json"))
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_damaged_line_is_named_and_the_others_are_read(tmp_path: Path):
    good = json.dumps(Conversation.ask("Q").answered("A").to_dict())
    (tmp_path / "x.jsonl").write_text(f"{good}\n\n{good[:-4]}\n{good}\n")
    found = open_source(tmp_path / "x.jsonl")
    assert len(found) == 3
    assert said(found[2]) == [("user", ["Q"]), ("assistant", ["A"])]
    with pytest.raises(BadInput, match=r"x\.jsonl: line 3: .*not JSON"):
        found[1]


def test_missing_files_and_folders_are_named(tmp_path: Path):
    with pytest.raises(BadInput, match=r"nothing\.json: cannot be read \(No such file or directory\)"):
        open_source(tmp_path / "nothing.json")
    write_json(tmp_path / "some.json", LLAVA)
    with pytest.raises(BadInput, match="no such folder or zip; expected the pictures"):
        open_source(tmp_path / "some.json", tmp_path / "nowhere")
    with pytest.raises(BadInput, match=r"some\.json: not a folder and not a whole zip"):
        open_source(tmp_path / "some.json", tmp_path / "some.json")


def test_a_folder_that_does_not_fit_is_told_at_once(tmp_path: Path):
    records = [
        {"image": f"{number}.png", "conversations": LLAVA[1]["conversations"]}  # pyright: ignore
        for number in range(40)
    ]
    (tmp_path / "other").mkdir()
    for number in (0, 39):
        (tmp_path / "other" / f"{number}.png").write_bytes(jpeg(number))
    found = source(tmp_path, records, media=tmp_path / "other")
    with pytest.raises(BadInput) as refused:
        found.check_media()
    assert str(refused.value) == (
        f"{tmp_path / 'data.json'}: 18 of 20 checked pictures are not in {tmp_path / 'other'}, first: 2.png; give "
        "--media the folder or zip that holds them"
    )
    for number in range(40):
        (tmp_path / "other" / f"{number}.png").write_bytes(b"")
    found.check_media()


KEYS = """
messages conversations texts question answer caption image images annotations role content from value type text url id
image_id bbox file_name sentences tokens_positive category_id width height categories audio user assistant
"""
keys = st.sampled_from(KEYS.split())
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(
        ["user", "assistant", "human", "gpt", "image", "text", "1.png", "data:,x", "\ud800", "<image>", "\0"]
    )
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=5))
likely = st.fixed_dictionaries(
    {"images": st.lists(values, max_size=3), "annotations": st.lists(values, max_size=3)},
    optional={"categories": values},
)


@given(content=values | likely | st.lists(likely | values, max_size=3), lines=st.booleans(), turns=st.booleans())
def test_no_json_makes_a_traceback(tmp_path_factory: pytest.TempPathFactory, content: Any, lines: bool, turns: bool):
    file = tmp_path_factory.mktemp("odd") / "odd.json"
    records = content if lines and isinstance(content, list) else [content]
    file.write_text("\n".join(map(json.dumps, records)) if lines else json.dumps(content))
    _only_bad_input(file, turns)


@given(st.binary(max_size=600) | st.tuples(st.integers(0, 600), st.binary(max_size=4)))
def test_no_file_makes_a_traceback(tmp_path_factory: pytest.TempPathFactory, content: Any):
    """Any bytes, and a good file with some of its bytes overwritten."""
    if isinstance(content, tuple):
        place, bytes_ = content
        good = json.dumps(LLAVA).encode()
        content = good[:place] + bytes_ + good[place + len(bytes_) :]
    file = tmp_path_factory.mktemp("odd") / "odd"
    file.write_bytes(content)
    _only_bad_input(file, True)


def _only_bad_input(file: Path, turns: bool) -> None:
    try:
        found = open_source(file, turns=turns)
        found.check_media()
    except BadInput as error:
        assert "\n" not in str(error)
        return
    for index in range(len(found)):
        try:
            for medium in media_of(found[index]):
                load_image(medium)
        except BadInput as error:
            assert "\n" not in str(error)
