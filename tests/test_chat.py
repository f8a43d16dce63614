from __future__ import annotations

import base64
import re

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from trisense.chat import Audio, Conversation, Image, Layout, Markers, Message, Rendered, Text, dump, render
from trisense.errors import BadInput
from trisense.recipe import read
from trisense.tokens import TextTokenizer

# What models use, special in the sense of tokenizers; `<think>` is the kind that Qwen adds without calling it special.
SPECIAL = ["<image>", "<audio>", "<|image|>", "<|audio|>", "<|img|>", "<|aud|>", "<|txt|>", "<|q|>", "<|a|>", "<|end|>"]
SPECIAL += ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<s>", "</s>"]
ADDED = [*SPECIAL, "<think>"]


def with_added(tokenizer: Tokenizer) -> TextTokenizer:
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    return TextTokenizer(tokenizer)


def byte_level() -> TextTokenizer:
    """One token per byte: decoding gives exactly what was encoded."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    # Indentation as phi-2 reads it: added, but nothing that controls anything.
    tokenizer.add_tokens([AddedToken("    ", normalized=False)])
    return with_added(tokenizer)


def sentencepiece() -> TextTokenizer:
    """As Phi-3.5's: a space before every piece, bytes for what is not in the vocabulary, which lists `<s>` itself."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefgh<>|/s"]
    model = models.BPE({p: i for i, p in enumerate(dict.fromkeys(pieces))}, [], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("<unk>", special=True, normalized=False)])
    return with_added(tokenizer)


def whole_words() -> TextTokenizer:
    """A vocabulary that lists the special strings as words, so that text finds them without any added token."""
    words = ["<unk>", "what", "is", "this", *ADDED]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return with_added(tokenizer)


TOKENIZERS = {"byte_level": byte_level(), "sentencepiece": sentencepiece(), "whole_words": whole_words()}
BYTES = TOKENIZERS["byte_level"]
# One id that is a special token, one in the rows that an embedding has beyond the tokenizer.
PLACEHOLDERS = {"image": BYTES.control("<|image|>")[0], "audio": BYTES.size + 7}
SPARK = Layout(
    image=Markers("<|img|>", ""),
    audio=Markers("<|aud|>", ""),
    text=Markers("<|txt|>", ""),
    question=Markers("<|q|>", ""),
    answer=Markers("<|a|>", "<|end|>"),
)
EDEN_SYSTEM = "You are a helpful assistant good at answering questions based on the given context."


def slots(part: Image | Audio) -> int:
    """Sources in these tests are the number of feature vectors they become."""
    return part.image if isinstance(part, Image) else part.audio


def rendered_by(layout: Layout, conversation: Conversation) -> Rendered:
    return render(conversation, layout, BYTES, PLACEHOLDERS, slots)


def shown(rendered: Rendered) -> str:
    """A rendered conversation as a reader would write it: media as [image x4], what is supervised in « »."""
    text, position = "", 0
    starts = {slot.start: slot for slot in rendered.media}
    ids, mask = rendered.ids, rendered.mask
    while position < len(ids):
        if position in starts:
            slot = starts[position]
            text += f"[{slot.sense} x{slot.length}]"
            position += slot.length
            continue
        end = position + 1
        while end < len(ids) and end not in starts and mask[end] == mask[position]:
            end += 1
        run = BYTES.decode(ids[position:end], skip_special=False)
        text += f"«{run}»" if mask[position] else run
        position = end
    return text


@pytest.mark.parametrize(
    ("layout", "conversation", "expected"),
    [
        pytest.param(
            SPARK,
            Conversation.ask("Is it red?", images=[36], audios=[5], texts=["A note."]).answered("yes"),
            "<|img|>[image x36]<|aud|>[audio x5]<|txt|>A note.<|q|>Is it red?<|a|>«yes<|end|>»",
            id="spark",
        ),
        pytest.param(
            read("context-gpt").design.layout,
            Conversation.ask("What is it?", images=[49]).answered("A cat."),
            "[image x49]\nHuman### What is it?\nAI### «A cat.<|endoftext|>»",
            id="context-gpt",
        ),
        pytest.param(
            Layout(image=Markers("", " caption: "), answer=Markers("", "<|endoftext|>")),
            Conversation(
                messages=(
                    Message(role="user", content=(Image(image=49),)),
                    Message(role="assistant", content=(Text(text="A cat."),)),
                )
            ),
            "[image x49] caption: «A cat.<|endoftext|>»",
            id="context-gpt align",
        ),
        pytest.param(
            read("tinyclip-phi2").design.layout,
            Conversation.ask("describe", images=[49], texts=["heard words"]).answered(" a cat"),
            "[image x49]heard words\ndescribe« a cat<|endoftext|>»",
            id="tinyclip-phi2",
        ),
        pytest.param(
            read("jnana").design.layout,
            Conversation.ask("what is it", images=[49], texts=["heard", "read"]).answered("a cat"),
            "[image x49]caption image:heard\nread\nwhat is itend of question:«a cat<|endoftext|>»",
            id="jnana",
        ),
        pytest.param(
            read("ft35").design.layout,
            Conversation.ask("What is it?", images=[1]).answered("A cat."),
            f"<|system|>\n{EDEN_SYSTEM}<|end|>\n<|user|>\n[image x1]\nWhat is it?<|end|>\n"
            "<|assistant|>\n«A cat.<|end|>»",
            id="ft35",
        ),
        pytest.param(
            read("eden").design.layout,
            Conversation.ask("What is it?", images=[1], texts=["Heard."]),
            f"<|system|>\n{EDEN_SYSTEM}<|end|>\n<|user|>\n[image x1]\nHeard.\nWhat is it?<|end|>\n<|assistant|>\n",
            id="eden, to be answered",
        ),
    ],
)
def test_layouts_of_the_recipes(layout: Layout, conversation: Conversation, expected: str) -> None:
    assert shown(rendered_by(layout, conversation)) == expected
    assert Layout.model_validate_json(layout.model_dump_json()) == layout


def test_turns_with_markers_of_their_own() -> None:
    layout = Layout(
        system=Markers("<|system|>\n", "<|end|>\n"),
        user=Markers("<|user|>\n", "<|end|>\n"),
        answer=Markers("<|assistant|>\n", "<|end|>"),
    )
    conversation = Conversation(
        messages=(
            Message(role="system", content=(Text(text="Be short."),)),
            Message(role="user", content=(Text(text="Hi"),)),
            Message(role="assistant", content=(Text(text="Hello"),)),
            Message(role="user", content=(Text(text="Bye"),)),
        )
    )
    assert shown(rendered_by(layout, conversation)) == (
        "<|system|>\nBe short.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n«Hello<|end|>»"
        "<|user|>\nBye<|end|>\n<|assistant|>\n"
    )


def test_the_question_closes_the_turn_wherever_it_stood() -> None:
    parts = (Text(text="note"), Text(text="Is it red?"), Image(image=2), Audio(audio=1))
    conversation = Conversation(messages=(Message(role="user", content=parts),))
    assert (
        shown(rendered_by(SPARK, conversation)) == "<|txt|>note<|img|>[image x2]<|aud|>[audio x1]<|q|>Is it red?<|a|>"
    )


# Text as people write it, with control strings, halves of them and white space put in.
texts = st.lists(
    st.one_of(st.text(max_size=8), st.sampled_from([*ADDED, "<", "|>", "<|", "image", " ", "\n", "    "])), max_size=6
).map("".join)
parts = st.one_of(
    texts.map(lambda text: Text(text=text)),
    st.integers(1, 9).map(lambda count: Image(image=count)),
    st.integers(1, 9).map(lambda count: Audio(audio=count)),
)
user_messages = st.lists(parts, max_size=6).map(lambda content: Message(role="user", content=tuple(content)))
answers = texts.map(lambda text: Message(role="assistant", content=(Text(text=text),)))
turns = st.lists(st.tuples(user_messages, answers), min_size=1, max_size=4)
systems = st.lists(texts.map(lambda text: Message(role="system", content=(Text(text=text),))), max_size=1)
conversations = st.builds(
    lambda system, pairs: Conversation(messages=(*system, *(m for pair in pairs for m in pair))), systems, turns
)
markers = st.builds(
    Markers, st.sampled_from(["", "<|q|>", "Human### ", "\n"]), st.sampled_from(["", "<|end|>", "<|end|>\n", "\n"])
)
layouts = st.builds(
    Layout,
    start=st.sampled_from(["", "<s>", "Begin. "]),
    system=markers,
    user=markers,
    image=markers,
    audio=markers,
    text=markers,
    question=markers,
    answer=markers,
)


@given(conversations, layouts)
def test_the_prompt_is_a_prefix_of_the_training_sequence(conversation: Conversation, layout: Layout) -> None:
    whole = rendered_by(layout, conversation)
    for turn, message in enumerate(conversation.messages):
        if message.role != "assistant":
            continue
        prompt = rendered_by(layout, Conversation(messages=conversation.messages[:turn]))
        assert np.array_equal(prompt.ids, whole.ids[: len(prompt.ids)])
        assert np.array_equal(prompt.mask, whole.mask[: len(prompt.ids)])
        assert prompt.media == whole.media[: len(prompt.media)]


@given(conversations, layouts)
def test_the_mask_covers_exactly_the_answers_and_their_end(conversation: Conversation, layout: Layout) -> None:
    whole = rendered_by(layout, conversation)
    assert whole.ids.dtype == np.int64
    assert whole.mask.dtype == np.bool_
    assert whole.mask.shape == whole.ids.shape
    expected = np.zeros(len(whole.ids), dtype=bool)
    for turn, message in enumerate(conversation.messages):
        if message.role == "assistant":
            start = len(rendered_by(layout, Conversation(messages=conversation.messages[:turn])).ids)
            answer = BYTES.plain(message.content[0].text) + BYTES.control(layout.answer.after)
            assert whole.ids[start : start + len(answer)].tolist() == answer
            expected[start : start + len(answer)] = True
    assert np.array_equal(whole.mask, expected)


@given(conversations, layouts)
def test_slots_are_exactly_where_the_ids_are_placeholders(conversation: Conversation, layout: Layout) -> None:
    whole = rendered_by(layout, conversation)
    found = {sense: np.flatnonzero(whole.ids == id).tolist() for sense, id in PLACEHOLDERS.items()}
    promised: dict[str, list[int]] = {"image": [], "audio": []}
    for slot in whole.media:
        assert slot.length == slots(slot.part)
        promised[slot.sense] += range(slot.start, slot.start + slot.length)
    assert found == promised
    shown_parts = [p for m in conversation.messages for p in m.content if not isinstance(p, Text)]
    assert [id(slot.part) for slot in whole.media] == [id(part) for part in shown_parts]


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=texts)
@example(text="".join(ADDED))
@example(text=" ".join(ADDED))
@example(text="what is <image> this")
def test_typed_text_never_becomes_a_control_token(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.plain(text)
    assert tokenizer.reserved.isdisjoint(ids)
    assert not {tokenizer.control(token)[0] for token in ADDED} & set(ids)
    if name == "byte_level":
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(ids, skip_special=False) == text
    elif name == "sentencepiece" and not re.search("[\ufffd▁]", text):
        assert tokenizer.decode(ids) == text


@given(conversations)
def test_a_conversation_holds_no_more_control_tokens_than_its_layout_wrote(conversation: Conversation) -> None:
    """Counted over the whole sequence: with SPARK every part writes one marker, every answer two."""
    ids = rendered_by(SPARK, conversation).ids.tolist()
    count = {token: ids.count(BYTES.control(token)[0]) for token in ADDED}
    parts = [part for message in conversation.messages if message.role == "user" for part in message.content]
    answered = sum(message.role == "assistant" for message in conversation.messages)
    questions = sum(any(isinstance(p, Text) for p in m.content) for m in conversation.messages if m.role == "user")
    images, audios = [p for p in parts if isinstance(p, Image)], [p for p in parts if isinstance(p, Audio)]
    expected = dict.fromkeys(ADDED, 0) | {
        "<|image|>": sum(map(slots, images)),
        "<|img|>": len(images),
        "<|aud|>": len(audios),
        "<|txt|>": len(parts) - len(images) - len(audios) - questions,
        "<|q|>": questions,
        "<|a|>": answered,
        "<|end|>": answered,
    }
    assert count == expected


def test_runs_of_spaces_are_text_even_where_they_are_added_tokens() -> None:
    assert BYTES.plain("    x") == [BYTES.id("    "), *BYTES.plain("x")]


def test_a_control_token_of_one_character_is_refused_where_it_cannot_be_cut() -> None:
    inner = Tokenizer(models.WordLevel({"<unk>": 0, "§": 1, "a": 2}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(["§"])
    tokenizer = TextTokenizer(inner)
    assert tokenizer.control("a §") == [2, 1]
    with pytest.raises(BadInput, match="'§' only as a control token"):
        tokenizer.plain("a § a")


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(BadInput, match="surrogate"):
        rendered_by(SPARK, Conversation.ask("a\ud800"))


def test_neither_door_adds_or_cuts_anything() -> None:
    inner = BYTES.copy()
    inner.enable_truncation(2)
    inner.enable_padding(length=9)
    tokenizer = TextTokenizer(inner)
    assert len(tokenizer.plain("abcd")) == 4
    assert len(tokenizer.control("<|end|>abc")) == 4
    assert inner.truncation is not None


def test_ids_beyond_the_tokenizer_decode_to_nothing() -> None:
    assert BYTES.decode([*BYTES.plain("a"), BYTES.size + 7, *BYTES.control("<|end|>"), *BYTES.plain("b")]) == "ab"


def test_a_tokenizer_file_is_read_back(tmp_path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(BYTES.to_json(), encoding="utf-8")
    again = TextTokenizer.from_file(path)
    assert again.reserved == BYTES.reserved
    assert again.control("<|end|>é") == BYTES.control("<|end|>é")
    with pytest.raises(BadInput, match=r"missing\.json: no such file"):
        TextTokenizer.from_file(tmp_path / "missing.json")
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(BadInput, match=r"not a tokenizer\.json"):
        TextTokenizer.from_file(path)


def test_a_sense_without_placeholder_is_refused() -> None:
    for conversation, lacks in (
        (Conversation.ask("?", images=[1]), "no eyes"),
        (Conversation.ask("?", audios=[1]), "no ears"),
    ):
        with pytest.raises(BadInput, match=lacks):
            render(conversation, SPARK, BYTES, {}, slots)


def test_an_unknown_key_of_a_layout_is_an_error() -> None:
    with pytest.raises(ValidationError, match="qestion"):
        Layout.model_validate({"qestion": ["<|q|>", ""]})


def test_the_dump_shows_cells_and_runs() -> None:
    rendered = rendered_by(SPARK, Conversation.ask("a b\n", images=[36]).answered("é\x1b"))
    plain = dump(rendered, BYTES, colour=False)
    assert plain == r"<|img|>|[image x36]|<|q|>|a|·|b|↵|<|a|>|«Ã|©|\x1b|<|end|>»"
    coloured = dump(rendered, BYTES)
    assert "\x1b[36m[image x36]\x1b[0m" in coloured
    assert "\x1b[32mÃ|©|\\x1b|<|end|>\x1b[0m" in coloured
    assert re.sub("\x1b\\[\\d+m", "", coloured) == plain.replace("«", "").replace("»", "")


def test_the_dump_shows_spaces_of_sentencepiece_and_unknown_ids() -> None:
    tokenizer = TOKENIZERS["sentencepiece"]
    ids = np.array([*tokenizer.plain("a b"), 99999])
    assert dump(Rendered(ids, np.zeros(len(ids), bool), ()), tokenizer, colour=False) == "·|a|·|b|#99999"


# The record and its ways in


def test_ask_orders_images_audios_texts_and_question() -> None:
    conversation = Conversation.ask("q", images=["i"], audios=["a"], texts=["t"])
    assert [part.type for part in conversation.messages[0].content] == ["image", "audio", "text", "text"]
    assert conversation.messages[0].content[-1] == Text(text="q")


def test_a_record_goes_to_json_and_back() -> None:
    conversation = Conversation.ask("q", images=["a.png", b"\x89PNG"], texts=["t"]).answered("yes")
    record = conversation.to_dict()
    payload = base64.b64encode(b"\x89PNG").decode()
    assert record["messages"][0]["content"][1] == {
        "type": "image",
        "image": f"data:application/octet-stream;base64,{payload}",
    }
    assert Conversation.from_dict(record).to_dict() == record
    assert Conversation.from_dict({"messages": [{"role": "user", "content": "q"}]}) == Conversation.ask("q")
    with pytest.raises(BadInput, match="ndarray cannot be written"):
        Conversation.ask("q", images=[np.zeros((2, 2, 3), np.uint8)]).to_dict()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": [{"role": "user", "content": "q", "to": 1}]}, r"unknown key 'messages\.0\.to'"),
        ({"messages": [{"role": "user"}]}, r"key 'messages\.0\.content' is missing"),
        ({"messages": [{"role": "king", "content": "q"}]}, r"messages\.0\.role: Input should be 'system'"),
        ({"messages": [{"role": "assistant", "content": [{"type": "image", "image": "x"}]}]}, "holds only text"),
    ],
)
def test_a_wrong_record_is_refused(record: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Conversation.from_dict(record)


PICTURE = "data:image/png;base64,iVBORw0KGgo="
SOUND = {"data": base64.b64encode(b"RIFF").decode(), "format": "wav"}


def test_openai_messages_with_strings_and_lists() -> None:
    conversation = Conversation.from_openai(
        [
            {"role": "developer", "content": "Be short."},
            {
                "role": "user",
                "name": "Anna",
                "content": [
                    {"type": "text", "text": "What is it?"},
                    {"type": "image_url", "image_url": {"url": PICTURE, "detail": "low"}},
                    {"type": "input_audio", "input_audio": SOUND},
                ],
            },
            # As a client sends back what it received.
            {"role": "assistant", "content": "A cat.", "refusal": None, "annotations": [], "tool_calls": None},
            {"role": "user", "content": "Sure?"},
        ]
    )
    assert [message.role for message in conversation.messages] == ["system", "user", "assistant", "user"]
    assert conversation.messages[1].content == (
        Text(text="What is it?"),
        Image(image=PICTURE),
        Audio(audio=b"RIFF"),
    )
    assert conversation.messages[3].content == (Text(text="Sure?"),)


def one(part: object) -> list[dict]:
    return [{"role": "user", "content": [part]}]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "at least one message"),
        (None, "at least one message"),
        ("hello", "expected a list"),
        (["hello"], r"messages\[0\]: expected an object with 'role'"),
        ([{"content": "x"}], r"messages\[0\]: expected an object with 'role'"),
        ([{"role": "king", "content": "x"}], r"messages\[0\]: unknown role 'king'"),
        ([{"role": ["user"], "content": "x"}], "unknown role"),
        ([{"role": "tool", "content": "x"}], "unknown role 'tool'"),
        ([{"role": "user", "content": None}], r"messages\[0\]: expected 'content' as a string or a list"),
        ([{"role": "user", "content": []}], "expected 'content'"),
        ([{"role": "user", "content": {"type": "text"}}], "expected 'content'"),
        ([{"role": "user", "content": "x"}, {"role": "assistant"}], r"messages\[1\]: expected 'content'"),
        ([{"role": "assistant", "content": "x", "tool_calls": [{"id": 1}]}], "'tool_calls' is not supported"),
        ([{"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": PICTURE}}]}], "only text"),
        (one("x"), r"content\[0\]: expected an object with 'type', got str"),
        (one({"type": "video_url"}), "unknown part type 'video_url'"),
        (one({"type": ["text"]}), "unknown part type"),
        (one({"type": "text"}), r"content\[0\]: expected \{'type': 'text'"),
        (one({"type": "image_url", "image_url": PICTURE}), "expected .*image_url"),
        (one({"type": "image_url", "image_url": {"url": "https://a.b/c.png"}}), "only data: URLs"),
        (one({"type": "image_url", "image_url": {"url": "/etc/passwd"}}), "only data: URLs"),
        (one({"type": "image", "image": "/etc/passwd"}), "unknown part type 'image'"),
        (one({"type": "input_audio", "input_audio": {"format": "wav"}}), "expected .*input_audio"),
        (one({"type": "input_audio", "input_audio": {"data": "###", "format": "wav"}}), "not base64"),
    ],
)
def test_openai_messages_that_are_refused(messages: object, message: str) -> None:
    with pytest.raises(BadInput, match=message) as refusal:
        Conversation.from_openai(messages)
    assert "\n" not in str(refusal.value)
