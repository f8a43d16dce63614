"""From a design to a tokenizer, a processor and a model with random weights."""

from __future__ import annotations

from typing import Any, cast

import pytest
import tiny_models
import torch

from trisense.chat import Layout, Markers
from trisense.errors import BadInput
from trisense.model.build import LOOK_BACK, begin_with, build_model, build_processor, train_tokenizer
from trisense.preprocess import AudioProcessor, ImageProcessor
from trisense.recipe import Design

TEXTS = ["the red cup stands left of the blue box", "who has the cup", "anna has the red cup"] * 3


def design(**changes: Any) -> Design:
    values = {
        "text": {
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
        },
        "vision": {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
        "audio": {
            "model_type": "parakeet_encoder",
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "subsampling_conv_channels": 8,
        },
        "senses": {"image": {"width": 16}, "audio": {"width": 16, "time_first": True, "frames_per_token": 8}},
        "placeholders": {"image": "<|image|>", "audio": "<|audio|>"},
        "layout": Layout(question=Markers("<|q|>", ""), answer=Markers("<|a|>", "<|end|>")),
        "pictures": ImageProcessor(height=32, width=32, crop=False, tokens=16),
        "sounds": AudioProcessor(chunk_seconds=None, frames_per_token=8),
        "vocabulary": 320,
    }
    return Design.model_validate(values | changes)


def test_a_tokenizer_of_our_own_writes_everything():
    tokenizer = train_tokenizer(TEXTS, design())
    assert 256 < tokenizer.size <= 320
    for text in ("the red cup", "Ünïcödé 🙂\n\ttabs", "<|end|> typed by a user"):
        assert tokenizer.decode(tokenizer.plain(text)).strip() == text
    special = {tokenizer.id(name) for name in ("<|q|>", "<|a|>", "<|end|>", "<|image|>", "<|audio|>")}
    assert len(special) == 5 and None not in special
    assert not special & set(tokenizer.plain("<|end|><|image|>"))


def test_a_word_is_the_same_token_at_the_start_and_inside():
    tokenizer = train_tokenizer(TEXTS, design())
    assert tokenizer.plain("the red cup")[-1:] == tokenizer.plain("cup")


def test_a_design_becomes_a_model_that_answers():
    processor = build_processor(design(), train_tokenizer(TEXTS, design()))
    torch.manual_seed(0)
    model = build_model(design(), processor).eval()
    config: Any = model.config
    end = processor.tokenizer.id("<|end|>")
    assert config.text_config.vocab_size == processor.tokenizer.size
    assert (config.eos_token_id, config.pad_token_id) == (end, end)
    assert config.placeholders == {
        "image": processor.tokenizer.id("<|image|>"),
        "audio": processor.placeholders["audio"],
    }

    prompt = processor.prompt(tiny_models.conversation())
    pictures = [value for slot, value in zip(prompt.media, prompt.values) if slot.sense == "image"]
    sounds = [value for slot, value in zip(prompt.media, prompt.values) if slot.sense == "audio"]
    longest = max(sound.shape[1] for sound in sounds)
    mels = torch.zeros(len(sounds), 80, longest)
    mask = torch.zeros(len(sounds), longest, dtype=torch.bool)
    for row, sound in enumerate(sounds):
        mels[row, :, : sound.shape[1]] = torch.from_numpy(sound)
        mask[row, : sound.shape[1]] = True
    said: Any = model.generate(
        torch.from_numpy(prompt.ids)[None],  # pyright: ignore[reportArgumentType]
        pixel_values=torch.stack([torch.from_numpy(picture) for picture in pictures]),
        input_features=mels,
        input_features_mask=mask,
        max_new_tokens=4,
        do_sample=False,
    )
    assert said[0, : len(prompt.ids)].tolist() == prompt.ids.tolist()


def test_the_same_seed_is_the_same_model():
    processor = build_processor(design(), train_tokenizer(TEXTS, design()))
    built = []
    for _ in range(2):
        torch.manual_seed(3)
        built.append(build_model(design(), processor).state_dict())
    assert all(torch.equal(built[0][name], tensor) for name, tensor in built[1].items())


def test_an_ear_from_nothing_keeps_its_signal():
    """Two sounds leave the encoder as different as they came; with transformers' own weights they leave as one."""
    processor = build_processor(design(), train_tokenizer(TEXTS, design()))
    torch.manual_seed(0)
    ear: Any = build_model(design(), processor).eval().senses["audio"]
    mels = torch.randn(2, 80, 160)
    with torch.no_grad():
        woken = ear.encoder.subsampling(mels.transpose(1, 2)).std()
        asleep = type(ear.encoder)(ear.encoder.config).eval().subsampling(mels.transpose(1, 2)).std()
    assert woken > 0.1 > asleep


def test_a_model_that_only_reads():
    words = design(vision=None, audio=None, senses={}, placeholders={}, pictures=None, sounds=None)
    model = build_model(words, build_processor(words, train_tokenizer(TEXTS, words)))
    assert not len(model.senses)
    assert model(input_ids=torch.tensor([[1, 2]])).logits.shape == (1, 2, model.config.text_config.vocab_size)


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "no model type": ({"text": {"hidden_size": 32}}, "design.text: model_type None is not one that transformers knows"),
    "an unknown model type": ({"vision": {"model_type": "eye"}}, "design.vision: model_type 'eye' is not one that"),
    "an unknown option": ({"senses": {"image": {"width": 16, "colour": 1}}}, "senses.image: unknown key 'colour'"),
    "no end of an answer": (
        {"layout": Layout(answer=Markers("<|a|>", ""))},
        "design.layout.answer.after: empty; an answer needs a token that ends it",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_design_that_does_not_fit_is_refused(case: str):
    changes, expected = BROKEN[case]
    wrong = design(**changes)
    with pytest.raises(BadInput, match=expected.replace("(", r"\(")):
        build_model(wrong, build_processor(wrong, train_tokenizer(TEXTS, wrong)))


def test_a_placeholder_must_be_a_token():
    tokenizer = train_tokenizer(TEXTS, design())
    with pytest.raises(BadInput, match=r"design.placeholders.image: '<\|eye\|>' is not a token of the tokenizer"):
        build_processor(design(placeholders={"image": "<|eye|>"}), tokenizer)


def test_attention_begins_by_looking_for_its_like():
    """Without positions, a token that comes twice matches itself best, and what is found there is copied."""
    torch.manual_seed(0)
    built: Any = build_model(design(), build_processor(design(), train_tokenizer(TEXTS, design())))
    attention = built.language_model.model.layers[0].self_attn
    words = built.get_input_embeddings().weight[100:110].detach()
    with torch.no_grad():
        match = attention.q_proj(words) @ attention.k_proj(words).T  # [10, 10]
        copied = attention.o_proj(attention.v_proj(words))
    assert match.argmax(1).tolist() == list(range(10))
    assert (torch.cosine_similarity(copied, words) > 0.5).all()


def test_grouped_keys_keep_their_own_weights():
    text = {**design().text, "num_key_value_heads": 1}
    grouped = design(text=text)
    torch.manual_seed(0)
    attention = (
        build_model(grouped, build_processor(grouped, train_tokenizer(TEXTS, grouped)))
        .language_model.model.layers[0]
        .self_attn
    )
    assert attention.k_proj.weight.shape != attention.q_proj.weight.shape


def test_a_first_layer_with_biases_begins_by_looking_back():
    """Its four heads attend most to what stands 1, 2, 3 and 5 places before, whatever stands there."""
    text = {**design().text, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
    biased = design(text={**text, "attention_bias": True})
    torch.manual_seed(0)
    model = build_model(biased, build_processor(biased, train_tokenizer(TEXTS, biased)))
    model.set_attn_implementation("eager")
    attended = model(input_ids=torch.randint(100, 250, (1, 30)), output_attentions=True).attentions[0][0]  # [4, 30, 30]
    for head, back in enumerate(LOOK_BACK):
        assert attended[head, 10:].argmax(-1).tolist() == [place - back for place in range(10, 30)]


def test_a_first_layer_without_biases_does_not():
    torch.manual_seed(0)
    attention: Any = build_model(design(), build_processor(design(), train_tokenizer(TEXTS, design()))).language_model
    first = attention.model.layers[0].self_attn
    assert first.q_proj.bias is None and torch.equal(first.q_proj.weight, first.k_proj.weight)


def test_a_model_begins_with_the_weights_of_another_that_knows_fewer_words() -> None:
    torch.manual_seed(0)
    small, large = (design(vocabulary=size) for size in (300, 320))
    words = train_tokenizer(TEXTS, small), train_tokenizer([*TEXTS, *["a wooden spoon on the table"] * 9], large)
    assert words[0].size < words[1].size
    other, model = (build_model(d, build_processor(d, w)) for d, w in zip((small, large), words, strict=True))
    begin_with(model, words[1], other, words[0])
    theirs = other.state_dict()
    for name, weight in model.state_dict().items():
        if "embed" not in name and "lm_head" not in name:
            assert torch.equal(weight, theirs[name]), name
    own, before = model.get_input_embeddings().weight, other.get_input_embeddings().weight
    for token in ("<|end|>", "<|image|>"):
        assert torch.equal(own[words[1].id(token)], before[words[0].id(token)])
    shared = {
        words[1].id(t): words[0].id(t) for t in (words[1].token(i) for i in range(words[1].size)) if words[0].id(t)
    }
    assert len(shared) > 250 and all(torch.equal(own[mine], before[old]) for mine, old in shared.items())
    new = next(i for i in range(words[1].size) if i not in shared and words[1].decode([i]).strip())
    pieces = words[0].plain(words[1].decode([new]))
    torch.testing.assert_close(own[new], before[pieces].mean(0))


def deep(layers: int) -> Design:
    text, audio = ({**(part or {}), "num_hidden_layers": layers} for part in (design().text, design().audio))
    return design(text=text, audio=audio)


def test_a_deeper_model_begins_by_saying_what_the_other_says() -> None:
    """Its new layers stand between those of the other and add nothing yet, but learn."""
    words = train_tokenizer(TEXTS, design())
    torch.manual_seed(0)
    model, other = (build_model(d, build_processor(d, words)).eval() for d in (deep(3), deep(2)))
    ids, sound = torch.randint(100, 250, (1, 12)), torch.randn(2, 80, 64)
    with torch.no_grad():
        for layer in cast(Any, other.senses["audio"]).encoder.layers:  # as if it had learned
            layer.norm_out.weight.uniform_(0.5, 1.5), layer.norm_out.bias.uniform_(-0.5, 0.5)
    drawn = cast(Any, model.senses["audio"]).encode(sound).detach()
    assert begin_with(model, words, other, words) == []
    torch.testing.assert_close(model(input_ids=ids).logits, other(input_ids=ids).logits)
    heard, before = (cast(Any, one.senses["audio"]).encode(sound) for one in (model, other))
    far = (drawn - before).norm()
    assert (heard - before).norm() < 0.2 * far, "normalised once more, so nearly"
    layers: Any = model.language_model.get_submodule("model.layers")
    theirs: Any = other.language_model.get_submodule("model.layers")
    for mine, old in ((0, 0), (1, 1)):
        assert torch.equal(layers[mine].mlp.up_proj.weight, theirs[old].mlp.up_proj.weight)
    new = layers[2]
    assert not new.self_attn.o_proj.weight.any() and new.self_attn.q_proj.weight.any()
    model(input_ids=ids).logits.square().sum().backward()
    assert new.self_attn.o_proj.weight.grad.any() and new.mlp.down_proj.weight.grad.any()


def test_of_a_deeper_model_no_layer_is_left_out() -> None:
    words = train_tokenizer(TEXTS, design())
    shallow, same = deep(1), design(text=deep(2).text)
    model, ears, other = (build_model(d, build_processor(d, words)) for d in (shallow, same, deep(2)))
    assert begin_with(ears, words, other, words) == ["senses.audio.encoder"]
    with pytest.raises(BadInput, match=r"begin with has 2 layers in language_model\.model\.layers, this design 1"):
        begin_with(model, words, other, words)


def eyes(hidden: int, **options: Any) -> Design:
    """A design whose picture encoder is `hidden` wide, with other options of its sense."""
    vision = {**design().vision, "hidden_sizes": [8, hidden]}  # pyright: ignore[reportGeneralTypeIssues]
    return design(vision=vision, senses={**design().senses, "image": {"width": hidden, **options}})


@pytest.mark.parametrize(
    ("wanted", "anew"),
    [
        (eyes(16), []),
        (eyes(16, projector="residual"), ["senses.image.projector"]),
        (eyes(24), ["senses.image.encoder", "senses.image.projector"]),
        (eyes(16, summary=2, names=5), ["senses.image.summary"]),
        (design(vision={**(design().vision or {}), "depths": [1, 2]}), ["senses.image.encoder"]),
        (
            eyes(24, summary=2, names=5, projector="naming", classes=[3, 4]),
            ["senses.image.encoder", "senses.image.projector", "senses.image.summary"],
        ),
    ],
    ids=lambda value: " and ".join(part.split(".")[-1] for part in value) or "none" if isinstance(value, list) else "",
)
def test_parts_of_a_sense_of_another_shape_begin_from_nothing_and_are_named(wanted: Design, anew: list[str]) -> None:
    """A part is kept or replaced as a whole, also where some of its weights would fit; all else is the other's."""
    words = train_tokenizer(TEXTS, design())
    torch.manual_seed(0)
    model, other = (build_model(d, build_processor(d, words)) for d in (wanted, design()))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert sorted(begin_with(model, words, other, words)) == anew
    theirs = other.state_dict()
    for name, weight in model.state_dict().items():
        own = name.startswith(tuple(f"{part}." for part in anew))
        assert torch.equal(weight, before[name] if own else theirs[name]), name
    fit = [n for n in before if n in theirs and before[n].shape == theirs[n].shape]
    differ = [n for n in fit if not torch.equal(before[n], theirs[n])]
    assert any(n.startswith("senses.image.encoder.") for n in differ), "which shows what was kept and what was not"


def test_a_model_of_another_design_is_no_beginning() -> None:
    words = train_tokenizer(TEXTS, design())
    wide = design(text={**design().text, "intermediate_size": 64})
    model, other = (build_model(d, build_processor(d, words)) for d in (design(), wide))
    with pytest.raises(BadInput, match=r"the model to begin with has \[.*64.*\] for language_model.*this design"):
        begin_with(model, words, other, words)
