"""Files of others become conversations: what was asked, what was answered, and where the picture is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trisense.chat import Conversation, Image, Text
from trisense.data.sources import Source
from trisense.errors import BadInput


def said(conversation: Conversation) -> list[tuple[str, list[str]]]:
    """Each message as its role and its parts, pictures by their file's name."""
    return [
        (
            message.role,
            [part.text if isinstance(part, Text) else f"[{Path(str(part.image)).name}]" for part in message.content],  # pyright: ignore
        )
        for message in conversation.messages
    ]


def source(folder: Path, content: Any, **options: Any) -> Source:
    file = folder / "data.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return Source.open(file, **options)


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
    picture = found[0].messages[0].content[0]
    assert isinstance(picture, Image) and picture.image == str(tmp_path / "1.jpg")
    assert said(found[1]) == [("user", ["Hi"]), ("assistant", ["Hello"])]


def test_llava_one_sample_for_each_question(tmp_path: Path):
    found = source(tmp_path, LLAVA, turns=True)
    assert [said(one) for one in found] == [
        [("user", ["[1.jpg]", "What is it?"]), ("assistant", ["A cat."])],
        [("user", ["[1.jpg]", "Is it black?"]), ("assistant", ["No."])],
        [("user", ["Hi"]), ("assistant", ["Hello"])],
    ]


def test_coco_captions(tmp_path: Path):
    (tmp_path / "pictures").mkdir()
    coco = {
        "info": {},
        "images": [{"id": 7, "file_name": "7.jpg"}, {"id": 8, "file_name": "8.jpg"}],
        "annotations": [
            {"id": 1, "image_id": 8, "caption": " A  dog\n"},
            {"id": 2, "image_id": 7, "caption": "A cup."},
            {"id": 3, "image_id": 8, "caption": "One dog."},
        ],
    }
    found = source(tmp_path, coco, media=tmp_path / "pictures")
    assert [said(one) for one in found] == [
        [("user", ["[8.jpg]"]), ("assistant", ["A dog"])],
        [("user", ["[7.jpg]"]), ("assistant", ["A cup."])],
        [("user", ["[8.jpg]"]), ("assistant", ["One dog."])],
    ]
    picture = found[1].messages[0].content[0]
    assert isinstance(picture, Image) and picture.image == str(tmp_path / "pictures" / "7.jpg")


questions = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(st.lists(st.tuples(questions, questions), min_size=1, max_size=5))
def test_our_own_record_survives(tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]):
    folder = tmp_path_factory.mktemp("ours")
    written = [Conversation.ask(q, images=["a.png"]).answered(a) for q, a in pairs]
    found = source(folder, "\n".join(json.dumps(one.to_dict()) for one in written) + "\n")
    assert len(found) == len(pairs)
    for one, (question, answer) in zip(found, pairs, strict=True):
        assert said(one) == [("user", ["[a.png]", question]), ("assistant", [answer])]
    picture = found[0].messages[0].content[0]
    assert isinstance(picture, Image) and picture.image == str(folder / "a.png")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "holds no conversation"),
        ("[]", "holds no conversation"),
        ("{", "not JSON"),
        ('{"a": 1}', "of no kind that is known"),
        ('{"images": [{"id": 1}], "annotations": []}', "COCO captions, but KeyError: 'file_name'"),
        ('[{"conversations": [{"from": "cat", "value": "x"}]}]', "record 0: not as expected (KeyError: 'cat')"),
        ('{"messages": [{"role": "user"}]}', "record 0: conversation: the key 'messages.0.content' is missing"),
    ],
)
def test_what_is_no_source_is_one_line_that_names_it(tmp_path: Path, content: str, expected: str):
    with pytest.raises(BadInput) as refused:
        list(source(tmp_path, content))
    assert str(refused.value).startswith(str(tmp_path / "data.json"))
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)


def test_missing_files_and_folders_are_named(tmp_path: Path):
    with pytest.raises(BadInput, match=r"nothing\.json: cannot be read \(No such file or directory\)"):
        Source.open(tmp_path / "nothing.json")
    with pytest.raises(BadInput, match="no such folder; expected the pictures"):
        Source.open(tmp_path / "nothing.json", tmp_path / "nowhere")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\xff")
    with pytest.raises(BadInput, match="not UTF-8 text"):
        Source.open(tmp_path / "a.png")
