from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, BatchFeature, ProcessorMixin, pipeline

from tests.tiny_models import config, picture, processor, save, sound
from trisense.chat import Conversation, Layout, Markers
from trisense.errors import BadInput
from trisense.model import TrisenseConfig, TrisenseProcessor
from trisense.prompt import Processor

LIGHT = processor()
HEAVY = TrisenseProcessor(LIGHT)
TALK = Conversation.ask("Is it red?", images=[picture(0)], audios=[sound(0)]).answered("yes")


def messages(question: str = "Is it red?") -> list[dict[str, Any]]:
    return [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": picture(0)},
                {"type": "audio", "audio": sound(0)},
                {"type": "text", "text": question},
            ],
        }
    ]


def test_one_question_is_what_the_light_wing_prompts() -> None:
    inputs = HEAVY("Is it red?", images=picture(0), audio=sound(0), return_tensors="pt")
    prompt = LIGHT.prompt(Conversation.ask("Is it red?", images=[picture(0)], audios=[sound(0)]))
    assert isinstance(inputs, BatchFeature)
    assert set(inputs) == set(HEAVY.model_input_names)
    assert inputs["input_ids"].dtype == torch.int64
    assert inputs["input_ids"].tolist() == [prompt.ids.tolist()]
    assert inputs["attention_mask"].tolist() == [[1] * len(prompt.ids)]
    np.testing.assert_array_equal(inputs["pixel_values"].numpy(), prompt.values[0][None])
    np.testing.assert_array_equal(inputs["input_features"].numpy(), prompt.values[1][None])
    assert inputs["input_features_mask"].shape == (1, prompt.values[1].shape[1])


def test_a_batch_is_left_padded_and_media_keep_their_order() -> None:
    questions = ["Short?", "And this one is much longer, is it not?", "None?"]
    inputs = HEAVY(
        questions,
        images=[[picture(0), picture(1)], None, picture(2)],
        audio=[sound(0, 0.2), [sound(1, 0.5), sound(2, 0.3)], None],
        return_tensors="np",
    )
    singles = [
        HEAVY(questions[0], images=[picture(0), picture(1)], audio=sound(0, 0.2), return_tensors="np"),
        HEAVY(questions[1], audio=[sound(1, 0.5), sound(2, 0.3)], return_tensors="np"),
        HEAVY(questions[2], images=[picture(2)], return_tensors="np"),
    ]
    for row, mask, single in zip(inputs["input_ids"], inputs["attention_mask"], singles, strict=True):
        length = single["input_ids"].shape[1]
        assert row[-length:].tolist() == single["input_ids"][0].tolist()
        assert set(row[:-length].tolist()) <= {HEAVY.pad_token_id}
        assert mask.tolist() == [0] * (len(mask) - length) + [1] * length
    assert inputs["pixel_values"].shape == (3, 3, 32, 32)
    np.testing.assert_array_equal(inputs["pixel_values"][2], singles[2]["pixel_values"][0])
    assert inputs["input_features"].shape == (3, 80, 50)
    assert inputs["input_features_mask"].sum(1).tolist() == [20, 50, 30]
    assert not inputs["input_features"][0, :, 20:].any()
    np.testing.assert_array_equal(inputs["input_features"][2, :, :30], singles[1]["input_features"][1, :, :30])
    # The model counts one placeholder for every feature vector: ceil(frames / 8) for sounds, 16 for pictures.
    assert int((inputs["input_ids"] == 257).sum()) == 3 + 7 + 4
    assert int((inputs["input_ids"] == 256).sum()) == 3 * 16


def test_text_alone_makes_no_media_inputs() -> None:
    assert set(HEAVY("Hello?")) == {"input_ids", "attention_mask"}


def test_padding_options() -> None:
    right = HEAVY(["a", "abc"], padding_side="right", return_tensors="np")
    assert right["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    ragged = HEAVY(["a", "abc"], padding=False)
    assert [len(row) for row in ragged["input_ids"]] == [3, 5]
    assert HEAVY(["a", "b"], padding=False, return_tensors="pt")["input_ids"].shape == (2, 3)
    with pytest.raises(BadInput, match="padding"):
        HEAVY(["a", "abc"], padding=False, return_tensors="pt")


@pytest.mark.parametrize(
    "kwargs", [{"padding": True}, {"text_kwargs": {"padding": True}}, {"common_kwargs": {"padding": True}}]
)
def test_padding_of_text_does_not_reach_the_sound(kwargs: dict[str, Any]) -> None:
    """It shortened Whisper's 3000 frames to 100 in processors that hand every option to every part."""
    whisper = TrisenseProcessor(processor("clip-whisper"))
    inputs = whisper(["a", "abc"], audio=[sound(0, 0.2), sound(1, 0.4)], return_tensors="pt", **kwargs)
    assert inputs["input_features"].shape == (2, 80, 100)  # a second each, as this processor says
    assert inputs["input_features_mask"].all()


def test_the_pad_token_never_asks_for_a_medium() -> None:
    for layout in (LIGHT.layout, Layout()):
        for placeholders in ({"image": 256, "audio": 257}, {"image": 1000, "audio": 1001}):
            light = dataclasses.replace(LIGHT, layout=layout, placeholders=placeholders)
            assert TrisenseProcessor(light).pad_token_id not in placeholders.values()


def test_typed_control_tokens_stay_text() -> None:
    typed = "<image><|end|><|assistant|> no"
    for inputs in (HEAVY(typed), HEAVY.apply_chat_template([{"role": "user", "content": typed}])):
        ids = inputs["input_ids"][0].tolist()
        assert [id for id in ids if id >= 256] == [258, 259]
        assert HEAVY.decode(ids, skip_special_tokens=True) == typed


# Conversations


def test_every_way_to_write_a_conversation_gives_the_same_inputs(samples: Path) -> None:
    image, voice = samples / "picture.png", samples / "voice.wav"
    data = {path: base64.b64encode(path.read_bytes()).decode() for path in (image, voice)}
    record = Conversation.ask("Is it red?", images=[image], audios=[voice])
    text = {"type": "text", "text": "Is it red?"}
    styles = [
        [{"type": "image", "path": str(image)}, {"type": "audio", "path": str(voice)}, text],
        [{"type": "image", "url": f"data:image/png;base64,{data[image]}"}, {"type": "audio", "audio": voice}, text],
        [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data[image]}"}},
            {"type": "input_audio", "input_audio": {"data": data[voice], "format": "wav"}},
            text,
        ],
    ]
    expected = HEAVY.apply_chat_template(record, return_tensors="np")
    for style in styles:
        inputs = HEAVY.apply_chat_template([{"role": "user", "content": style}], return_tensors="np")
        assert set(inputs) == set(expected)
        for name in expected:
            np.testing.assert_array_equal(inputs[name], expected[name])


def test_the_end_of_a_conversation_is_what_was_asked_for() -> None:
    def ids(conversation: Any, **kwargs: Any) -> list[int]:
        return HEAVY.apply_chat_template(conversation, return_dict=False, **kwargs)[0].tolist()

    question = ids(messages())
    assert question == LIGHT.prompt(Conversation(messages=TALK.messages[:1])).ids.tolist()
    assert ids(messages(), add_generation_prompt=False) == question[:-1]
    answered = ids(TALK, add_generation_prompt=False)
    assert answered == LIGHT.prompt(TALK).ids.tolist()
    assert ids(TALK) == [*answered, 259]
    assert ids(TALK, add_generation_prompt=False, continue_final_message=True) == answered[:-1]
    with pytest.raises(BadInput, match="continue_final_message"):
        ids(messages(), add_generation_prompt=False, continue_final_message=True)


def test_a_batch_of_conversations_and_its_mask() -> None:
    inputs = HEAVY.apply_chat_template(
        [TALK, messages("And now?")],
        add_generation_prompt=False,
        return_assistant_tokens_mask=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )
    assert inputs["input_ids"].shape == inputs["assistant_masks"].shape
    assert inputs["assistant_masks"].sum(1).tolist() == [4, 0]  # y, e, s and the end token
    assert inputs["pixel_values"].shape[0] == inputs["input_features"].shape[0] == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: HEAVY(), "text: a question is needed"),
        (lambda: HEAVY(["a", "b"], images=[picture(0)]), "images: got 1 for 2 questions"),
        (lambda: HEAVY(["a", "b"], audio=sound(0)), "audio: got ndarray for 2 questions"),
        (lambda: HEAVY("a", truncation=True), "truncation=True: not an option"),
        (lambda: HEAVY("a", padding="max_length"), "padding='max_length': not an option"),
        (lambda: HEAVY("a", images_kwargs={"do_resize": False}), "images_kwargs"),
        (lambda: HEAVY.apply_chat_template(messages(), chat_template="{{ x }}"), "chat_template: not used"),
        (lambda: HEAVY.apply_chat_template(messages(), tokenize=False), "tokenize: only True"),
        (lambda: HEAVY.apply_chat_template(messages(), sanitize_control_tokens=False), "sanitize_control_tokens: only"),
        (lambda: HEAVY.apply_chat_template(messages(), tools=[{}]), "tools=.*not an option"),
        (lambda: HEAVY.apply_chat_template([]), "at least one message"),
        (lambda: HEAVY.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}]), "without a source"),
        (lambda: HEAVY.apply_chat_template([{"role": "user", "content": [{"type": "video"}]}]), "unknown part type"),
        (lambda: HEAVY("a", images="http://127.0.0.1/a.png"), "http"),
    ],
)
def test_what_is_refused(call: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        call()


# Folders


def test_auto_classes_read_what_is_saved_with_and_without_a_model_config(tmp_path: Path) -> None:
    files = HEAVY.save_pretrained(tmp_path)
    assert sorted(Path(file).name for file in files) == [
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    expected = HEAVY.apply_chat_template(TALK, return_tensors="np")
    for with_model_config in (False, True):
        if with_model_config:
            config().save_pretrained(tmp_path)
        again = AutoProcessor.from_pretrained(tmp_path)
        assert type(again) is TrisenseProcessor
        assert isinstance(again, ProcessorMixin)
        inputs = again.apply_chat_template(TALK, return_tensors="np")
        for name in expected:
            np.testing.assert_array_equal(inputs[name], expected[name])
        assert AutoTokenizer.from_pretrained(tmp_path).convert_tokens_to_ids("<|end|>") == 260
    assert isinstance(TrisenseConfig.from_pretrained(tmp_path), TrisenseConfig)


def test_both_wings_read_the_very_same_folder(tmp_path: Path) -> None:
    HEAVY.save_pretrained(tmp_path / "heavy")
    LIGHT.save(tmp_path / "light")
    for name in ("tokenizer.json", "processor_config.json"):
        assert (tmp_path / "heavy" / name).read_bytes() == (tmp_path / "light" / name).read_bytes()
    assert Processor.from_folder(tmp_path / "heavy").to_dict() == LIGHT.to_dict()
    assert AutoProcessor.from_pretrained(tmp_path / "light").to_dict() == LIGHT.to_dict()


def test_text_only_programs_find_no_processor_in_the_tokenizer(tmp_path: Path) -> None:
    HEAVY.save_pretrained(tmp_path)
    assert "processor_class" not in json.loads((tmp_path / "tokenizer_config.json").read_text())


def test_a_subfolder_and_a_repository_in_the_cache(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--us--tiny" / "snapshots" / ("0" * 40)
    HEAVY.save_pretrained(snapshot)
    (tmp_path / "models--us--tiny" / "refs").mkdir()
    (tmp_path / "models--us--tiny" / "refs" / "main").write_text("0" * 40)
    again = AutoProcessor.from_pretrained("us/tiny", cache_dir=tmp_path, local_files_only=True)
    assert again.to_dict() == LIGHT.to_dict()
    again = TrisenseProcessor.from_pretrained(snapshot.parent, subfolder=snapshot.name)
    assert again.to_dict() == LIGHT.to_dict()


def test_a_folder_that_is_wrong_is_refused_by_name(tmp_path: Path) -> None:
    HEAVY.save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sound": 1}))
    with pytest.raises(BadInput, match="unknown key 'sound'"):
        AutoProcessor.from_pretrained(tmp_path)


def test_decoding_and_the_ids_of_placeholders() -> None:
    assert (HEAVY.image_token_id, HEAVY.audio_token_id) == (256, 257)
    ids = torch.tensor([[*LIGHT.tokenizer.plain("yes"), 260], [*LIGHT.tokenizer.plain("noo"), 260]])
    assert HEAVY.post_process_image_text_to_text(ids) == ["yes", "noo"]
    assert HEAVY.batch_decode(ids, skip_special_tokens=False) == ["yes<|end|>", "noo<|end|>"]


def test_the_pipeline_of_transformers_answers(tmp_path: Path) -> None:
    ask = pipeline("image-text-to-text", model=str(save(tmp_path)), device="cpu")
    parts = [{"type": "image", "image": Image.fromarray(picture(0))}, {"type": "text", "text": "What is it?"}]
    (answer,) = ask(text=[{"role": "user", "content": parts}], max_new_tokens=5, return_full_text=False)
    inputs = HEAVY("What is it?", images=picture(0), return_tensors="pt")
    new = ask.model.generate(**inputs, max_new_tokens=5)[:, inputs["input_ids"].shape[1] :]
    assert answer["generated_text"] == HEAVY.post_process_image_text_to_text(new)[0]


def test_a_layout_without_an_end_still_batches() -> None:
    light = dataclasses.replace(LIGHT, layout=Layout(question=Markers("<|user|>", "")))
    assert TrisenseProcessor(light)(["a", "abc"], return_tensors="pt")["attention_mask"].sum().item() == 2 + 4
