"""The model against transformers' own: the same weights give the same logits, loss and words.

Letters: B rows, T positions, N media, S feature vectors of one medium, V vocabulary.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import tiny_models
import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from trisense.chat import Conversation
from trisense.model import TrisenseConfig, TrisenseForConditionalGeneration, TrisenseProcessor

IMAGE, AUDIO = 256, 257


def close(actual: torch.Tensor, expected: torch.Tensor, within: float = 2e-5) -> None:
    """Equal up to float32 sums in another order, which differs with batch, padding and number of threads."""
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=within)


@cache
def model(design: str = "clip-whisper") -> Any:
    """A tiny model with random weights; tests leave it as it is."""
    torch.manual_seed(0)
    return TrisenseForConditionalGeneration(tiny_models.config(design)).eval()


def inputs(design: str, *conversations: Conversation) -> dict[str, torch.Tensor]:
    processor = TrisenseProcessor(tiny_models.processor(design))
    return dict(processor.apply_chat_template(list(conversations), return_tensors="pt"))


def ask(question: str, pictures: tuple[int, ...] = (), sounds: tuple[tuple[int, float], ...] = ()) -> Conversation:
    return Conversation.ask(
        question,
        images=[tiny_models.picture(seed) for seed in pictures],
        audios=[tiny_models.sound(seed, seconds) for seed, seconds in sounds],
    )


def text(*shape: int, seed: int = 0) -> torch.Tensor:
    """Token ids that are no placeholders."""
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed))


# transformers' LLaVA, and what both make of the same picture and words


@cache
def llava() -> Any:
    """LLaVA with the weights of `model()`, copied by name."""
    ours = model()
    config = LlavaConfig(
        vision_config=ours.config.vision_config,
        text_config=ours.config.text_config,
        image_token_id=IMAGE,  # pyright: ignore[reportCallIssue] - another name of image_token_index
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
    )
    theirs = LlavaForConditionalGeneration(config).eval()
    places = {
        "senses.image.encoder.": "model.vision_tower.",
        "senses.image.projector.0.": "model.multi_modal_projector.linear_1.",
        "senses.image.projector.2.": "model.multi_modal_projector.linear_2.",
        "language_model.model.": "model.language_model.",
        "language_model.lm_head.": "lm_head.",
    }
    weights = {
        there + name.removeprefix(here): tensor
        for name, tensor in ours.state_dict().items()
        for here, there in places.items()
        if name.startswith(here)
    }
    theirs.load_state_dict(weights)
    return theirs


PICTURED = [ask("What is it?", (0, 1)), ask("And where?", (2,)), ask("Is there a cup in it?", (3,))]


def test_llava_gives_the_same_logits():
    batch = inputs("clip-whisper", *PICTURED)
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        ours, theirs = model()(**batch).logits, llava()(**batch).logits  # [B, T, V]
    assert (ours - theirs)[real].abs().max() < 1e-5


def test_llava_says_the_same_32_words():
    batch = inputs("clip-whisper", *PICTURED)
    how = {"max_new_tokens": 32, "do_sample": False, "eos_token_id": None}
    theirs = llava().generate(**batch, **how, suppress_tokens=[IMAGE, AUDIO])
    ours = model().generate(**batch, **how)
    assert ours.shape == (3, batch["input_ids"].shape[1] + 32)
    assert torch.equal(ours, theirs)
    assert len(set(ours[:, -32:].flatten().tolist())) > 10  # a model that repeats one word would agree too easily


def test_llava_has_the_same_loss():
    batch = inputs("clip-whisper", *PICTURED)
    labels = batch["input_ids"].masked_fill(text(*batch["input_ids"].shape) % 2 == 0, -100)
    labels = labels.masked_fill((labels == IMAGE) | (batch["attention_mask"] == 0), -100)
    with torch.no_grad():
        ours, theirs = model()(**batch, labels=labels).loss, llava()(**batch, labels=labels).loss
        close(ours, theirs, within=1e-5)
        ours, theirs = (m(**batch, labels=labels, num_items_in_batch=7).loss for m in (model(), llava()))
        close(ours, theirs, within=1e-5)


# What is spliced in, and where


@pytest.mark.parametrize("design", tiny_models.DESIGNS)
@torch.no_grad()
def test_text_alone_is_the_bare_language_model(design: str):
    ids = text(2, 9)
    bare = model(design).language_model
    assert torch.equal(model(design)(input_ids=ids).logits, bare(input_ids=ids).logits)
    how = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    assert torch.equal(model(design).generate(ids, **how), bare.generate(ids, suppress_tokens=[IMAGE, AUDIO], **how))


MIXED = [
    ask("What is it?", (0, 1), ((0, 0.7),)),
    ask("Nothing is shown."),
    ask("Who speaks there, and of what?", (), ((1, 0.4), (2, 0.9))),
    ask("Now?", (2,)),
]


@pytest.mark.parametrize("design", tiny_models.DESIGNS)
@torch.no_grad()
def test_a_row_of_a_batch_is_the_row_alone(design: str):
    """Left padding, other rows' pictures and longer sounds beside it change nothing."""
    batch = inputs(design, *MIXED)
    together = model(design)(**batch).logits  # [B, T, V]
    how = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None}
    said = model(design).generate(**batch, **how)
    for row, conversation in enumerate(MIXED):
        single = inputs(design, conversation)
        alone = model(design)(**single).logits
        close(together[row, -alone.shape[1] :], alone[0])
        assert torch.equal(said[row, -10:], model(design).generate(**single, **how)[0, -10:])


@pytest.mark.parametrize("order", [("image", "audio"), ("audio", "image"), ("audio", "image", "audio", "image")])
@torch.no_grad()
def test_every_placeholder_becomes_its_own_vector(order: tuple[str, ...]):
    """A picture and sounds in any order, between words: the n-th placeholder of a sense is its n-th feature vector."""
    m = model("spark")
    given = {"image": torch.randn(order.count("image"), 4, 16), "audio": torch.randn(order.count("audio"), 3, 16)}
    parts, expected, seen = [text(1, 2)[0]], [], {"image": 0, "audio": 0}
    expected.append(m.get_input_embeddings()(parts[0]))
    for number, name in enumerate(order):
        features = given[name][seen[name]]
        seen[name] += 1
        parts += [torch.full((len(features),), m.config.placeholders[name]), text(1, 3, seed=number)[0]]
        expected += [m.senses[name].projector(features), m.get_input_embeddings()(parts[-1])]
    media = {"image_features": given["image"], "audio_features": given["audio"]}
    spliced = m.embed(torch.cat(parts)[None], media)
    close(spliced[0], torch.cat(expected))


@pytest.mark.parametrize("design", tiny_models.DESIGNS)
@torch.no_grad()
def test_features_computed_before_give_the_same_logits(design: str):
    batch = inputs(design, *MIXED)
    direct = model(design)(**batch).logits
    eye, ear = model(design).senses["image"], model(design).senses["audio"]
    mask = batch.pop("input_features_mask")
    heard = ear.encode(batch.pop("input_features"), mask)
    kept = {
        "image_features": eye.encode(batch.pop("pixel_values")),
        "audio_features": heard,
        "audio_lengths": ear.lengths(heard, mask),
    }
    close(model(design)(**batch, **kept).logits, direct)
    # A cache on disk holds halves; the projector computes in its own precision all the same.
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in kept.items()}
    close(model(design)(**batch, **halves).logits, direct, within=0.3)


def refusals() -> dict[str, tuple[dict[str, Any], str]]:
    ids = torch.tensor([[1, IMAGE, IMAGE, 2]])
    embedded = model("spark").get_input_embeddings()(text(1, 3))
    return {
        "counts differ": (
            {"input_ids": ids, "image_features": torch.zeros(1, 4, 16)},
            "the prompt has 2 image placeholders but the images give 4 vectors",
        ),
        "sounds of other lengths": (
            {
                "input_ids": torch.tensor([[AUDIO, 1]]),
                "audio_features": torch.zeros(2, 4, 16),
                "audio_lengths": torch.tensor([1, 2]),
            },
            "the prompt has 1 audio placeholders but the audios give 3 vectors",
        ),
        "a picture without a place": (
            {"input_ids": text(1, 3), "image_features": torch.zeros(1, 4, 16)},
            "the prompt has 0 image placeholders but the images give 4 vectors",
        ),
        "a place without a picture": ({"input_ids": ids}, "has 2 image placeholders but no image was given"),
        "pixels and features": (
            {
                "input_ids": ids,
                "pixel_values": torch.zeros(1, 3, 32, 32),
                "image_features": torch.zeros(1, 2, 16),
            },
            "image: give either",
        ),
        "ids and embeddings": ({"input_ids": text(1, 3), "inputs_embeds": embedded}, "either input_ids or inputs_embe"),
        "neither": ({}, "either input_ids or inputs_embeds"),
        "a picture with embeddings": (
            {"inputs_embeds": embedded, "pixel_values": torch.zeros(1, 3, 32, 32)},
            "pixel_values: a medium is spliced in where input_ids has placeholders",
        ),
    }


@pytest.mark.parametrize("case", refusals())
def test_what_cannot_be_spliced_is_refused(case: str):
    given, expected = refusals()[case]
    with pytest.raises(ValueError, match=expected):
        model("spark")(**given)
    if given:
        with pytest.raises(ValueError, match=expected):
            model("spark").generate(**given, max_new_tokens=1)


def test_a_model_without_a_sense_refuses_what_it_cannot_read():
    full = tiny_models.config("spark")
    blind = TrisenseConfig(
        text_config=full.text_config,
        audio_config=full.audio_config,
        senses={"audio": full.senses["audio"]},  # pyright: ignore[reportOptionalSubscript]
        placeholders={"audio": AUDIO},
    )
    m: Any = TrisenseForConditionalGeneration(blind)
    with pytest.raises(ValueError, match="an image was given but this model has no image sense"):
        m(input_ids=torch.tensor([[1]]), pixel_values=torch.zeros(1, 3, 32, 32))


# The loss


@torch.no_grad()
def test_the_loss_is_the_language_models_own():
    ids, labels = text(3, 12), text(3, 12)
    labels[:, :4] = -100
    labels[0] = -100
    bare = model().language_model
    for items in ({}, {"num_items_in_batch": 5}, {"num_items_in_batch": torch.tensor(31)}):
        ours = model()(input_ids=ids, labels=labels, **items).loss
        close(ours, bare(input_ids=ids, labels=labels, **items).loss)


@torch.no_grad()
def test_logits_only_where_an_answer_is_supervised():
    ids = text(2, 8)
    labels = torch.full_like(ids, -100)
    labels[0, 5:7], labels[1, 0], labels[1, 3] = 1, 1, 1  # no position predicts the first token of a row
    logits = model()(input_ids=ids, labels=labels).logits
    everywhere = model()(input_ids=ids).logits
    assert torch.equal(logits.argmax(-1), everywhere[[0, 0, 1], [4, 5, 2]].argmax(-1))
    close(logits, everywhere[[0, 0, 1], [4, 5, 2]])


def counting_model(size: int = 12) -> Any:
    """A language model without layers that is sure that every token is followed by the next higher one."""
    config = LlamaConfig(
        vocab_size=size, hidden_size=size, intermediate_size=4, num_hidden_layers=0, num_attention_heads=1
    )
    m: Any = TrisenseForConditionalGeneration(TrisenseConfig(text_config=config)).eval()
    m.language_model.get_input_embeddings().weight.data = torch.eye(size)
    m.language_model.get_output_embeddings().weight.data = 20 * torch.eye(size).roll(1, 0)
    return m


def test_labels_are_shifted_once():
    ids = torch.tensor([[3, 4, 5, 6, 7]])
    assert counting_model()(input_ids=ids, labels=ids).loss < 1e-6
    for shifted in (ids + 1, ids - 1):
        assert counting_model()(input_ids=ids, labels=shifted).loss > 10


def test_no_supervised_token_is_no_loss_and_no_gradient():
    m = counting_model()
    ids = text(2, 4) % 12
    loss = m(input_ids=ids, labels=torch.full_like(ids, -100)).loss
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or not p.grad.any() for p in m.parameters())


def supervised(design: str) -> dict[str, torch.Tensor]:
    batch = inputs(design, *MIXED)
    return {**batch, "labels": batch["input_ids"].masked_fill(batch["input_ids"] >= IMAGE, -100)}


def test_only_what_learns_gets_a_gradient():
    torch.manual_seed(0)
    m: Any = TrisenseForConditionalGeneration(tiny_models.config("spark"))
    m.requires_grad_(False)
    for sense in m.senses.values():
        sense.projector.requires_grad_(True)
    m(**supervised("spark")).loss.backward()
    for name, parameter in m.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == (".projector." in name), name


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # its name until transformers 6
def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        m: Any = TrisenseForConditionalGeneration(tiny_models.config("clip-whisper")).train()
        if checkpointed:
            m.gradient_checkpointing_enable()
            assert m.language_model.is_gradient_checkpointing
            assert m.senses["image"].encoder.is_gradient_checkpointing
        m(**supervised("clip-whisper")).loss.backward()
        gradients.append({name: p.grad for name, p in m.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        close(gradients[1][name], gradient)


def test_samples_packed_into_one_row_do_not_see_each_other():
    """Positions that start again at 0 mark the samples: the loss of the row is the loss of the samples."""
    first, second = text(1, 7, seed=1), text(1, 5, seed=2)
    labels = torch.cat([first, second], 1)
    labels[0, 7] = -100  # the first token of a sample is predicted by nothing
    positions = torch.cat([torch.arange(7), torch.arange(5)])[None]
    packed = model().train()(input_ids=torch.cat([first, second], 1), labels=labels, position_ids=positions)
    alone = [model()(input_ids=ids, labels=ids) for ids in (first, second)]
    model().eval()
    close(packed.logits, torch.cat([out.logits for out in alone]))


def test_a_head_that_scales_its_logits_is_refused_in_training():
    config = tiny_models.config("spark")
    config.text_config.final_logit_softcapping = 30.0
    m: Any = TrisenseForConditionalGeneration(config)
    with pytest.raises(ValueError, match="final_logit_softcapping cannot be trained"):
        m(input_ids=text(1, 3), labels=text(1, 3))


# Writing


@torch.no_grad()
def test_generate_is_what_a_loop_without_a_cache_would_say():
    batch = inputs("spark", MIXED[0])
    said = model("spark").generate(**batch, max_new_tokens=6, do_sample=False, eos_token_id=None)
    prompt = batch["input_ids"].shape[1]
    assert torch.equal(said[:, :prompt], batch["input_ids"])
    logits = model("spark")(**(batch | {"input_ids": said, "attention_mask": torch.ones_like(said)})).logits
    logits[..., [IMAGE, AUDIO]] = -torch.inf
    assert torch.equal(logits[:, prompt - 1 : -1].argmax(-1), said[:, prompt:])


def test_generate_reads_the_prompt_and_the_media_once(monkeypatch: pytest.MonkeyPatch):
    m = model("spark")
    read, encoded = [], []
    decoder, encoder = m.language_model.forward, m.senses["image"].encoder.forward
    monkeypatch.setattr(
        m.language_model,
        "forward",
        lambda *args, **kwargs: (read.append(kwargs["inputs_embeds"].shape[1]), decoder(*args, **kwargs))[1],
    )
    monkeypatch.setattr(
        m.senses["image"].encoder,
        "forward",
        lambda *args, **kwargs: (encoded.append(len(args[0])), encoder(*args, **kwargs))[1],
    )
    batch = inputs("spark", *MIXED)
    m.generate(**batch, max_new_tokens=5, do_sample=False, eos_token_id=None)
    assert read == [batch["input_ids"].shape[1], 1, 1, 1, 1]
    assert encoded == [3]


@torch.no_grad()
def test_generate_in_every_way_of_transformers():
    """Beams and samples are repeated row by row, and each row keeps its own pictures."""
    batch = inputs("clip-whisper", *PICTURED)
    rows, prompt = batch["input_ids"].shape
    how = {"max_new_tokens": 5, "eos_token_id": None, "return_dict_in_generate": True, "output_logits": True}
    out = model().generate(**batch, **how, do_sample=False)
    assert out.sequences.shape == (rows, prompt + 5)
    theirs = llava().generate(**batch, **how, do_sample=False)
    close(out.logits[0], theirs.logits[0])

    beams = {"max_new_tokens": 5, "eos_token_id": None, "num_beams": 3, "num_return_sequences": 2, "do_sample": False}
    single = [inputs("clip-whisper", conversation) for conversation in PICTURED]
    together = model().generate(**batch, **beams)
    assert torch.equal(together[:, :prompt], batch["input_ids"].repeat_interleave(2, 0))
    for row, alone in enumerate(single):
        assert torch.equal(together[2 * row : 2 * row + 2, -5:], model().generate(**alone, **beams)[:, -5:])

    torch.manual_seed(1)
    drawn = model().generate(**batch, max_new_tokens=5, eos_token_id=None, do_sample=True, num_return_sequences=4)
    assert torch.equal(drawn[:, :prompt], batch["input_ids"].repeat_interleave(4, 0))
    assert len({tuple(row) for row in drawn[:4, prompt:].tolist()}) > 1


@torch.no_grad()
def test_generate_stops_at_the_end_token_and_never_says_a_placeholder():
    ids = text(1, 6)
    free = model().generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None)[0, 6:]
    end = int(free[3])
    stopped = model().generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=end, pad_token_id=end)[0, 6:]
    assert stopped.tolist() == free.tolist()[: free.tolist().index(end) + 1]

    m = counting_model()
    m.placeholders = {"image": 5}
    said = m.generate(torch.tensor([[3]]), max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert said[0, :2].tolist() == [3, 4] and 5 not in said


@torch.no_grad()
def test_a_penalty_for_repetition_knows_the_prompt():
    """The prompt's ids go into generation beside its embeddings."""
    ids = torch.tensor([[3, 4, 5, 6, 3]])
    how = {"max_new_tokens": 1, "do_sample": False, "eos_token_id": None}
    assert int(counting_model().generate(ids, **how)[0, -1]) == 4
    assert int(counting_model().generate(ids, **how, no_repeat_ngram_size=2)[0, -1]) != 4


# Folders


@pytest.mark.parametrize("design", tiny_models.DESIGNS)
@torch.no_grad()
def test_a_folder_gives_the_same_model_through_the_auto_classes(design: str, tmp_path: Path):
    model(design).save_pretrained(tmp_path)
    tiny_models.processor(design).save(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is TrisenseConfig
    loaded: Any = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(loaded) is TrisenseForConditionalGeneration and not loaded.training
    stored = model(design).state_dict()
    assert loaded.state_dict().keys() == stored.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, stored[name]), name

    processor = AutoProcessor.from_pretrained(tmp_path)
    batch = processor.apply_chat_template(MIXED, return_tensors="pt")
    assert torch.equal(loaded(**batch).logits, model(design)(**batch).logits)
    again = loaded.generate(**batch, max_new_tokens=4, do_sample=False)
    assert torch.equal(again, model(design).generate(**batch, max_new_tokens=4, do_sample=False))


def test_tied_embeddings_are_one_tensor_after_loading(tmp_path: Path):
    model("spark").save_pretrained(tmp_path)
    loaded = TrisenseForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.config.tie_word_embeddings
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    untied = model("clip-whisper")
    assert untied.get_output_embeddings().weight is not untied.get_input_embeddings().weight


def test_the_order_of_keys_in_config_json_does_not_matter(tmp_path: Path):
    """Optimisers keep their state by the order of parameters, so the order of parameters is fixed."""
    folder = copytree(tiny_models.folder(), tmp_path / "model")
    values = json.loads((folder / "config.json").read_text())
    values["senses"] = dict(reversed(values["senses"].items()))
    (folder / "config.json").write_text(json.dumps(dict(reversed(values.items()))))
    names = [name for name, _ in model("spark").named_parameters()]
    loaded = TrisenseForConditionalGeneration.from_pretrained(folder)
    assert [name for name, _ in loaded.named_parameters()] == names


# Dtypes and attention


@torch.no_grad()
def test_the_language_models_dtype_rules():
    """A language model in half precision beside senses in full, and inputs always in full."""
    torch.manual_seed(0)
    m: Any = TrisenseForConditionalGeneration(tiny_models.config("spark")).eval()
    m.language_model.to(torch.bfloat16)
    assert m(**inputs("spark", *MIXED)).logits.dtype == torch.bfloat16
    m.to(torch.bfloat16)
    assert m(**inputs("spark", *MIXED)).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("design", tiny_models.DESIGNS)
@torch.no_grad()
def test_the_attention_asked_for_reaches_every_part(design: str):
    loaded: dict[str, Any] = {
        name: AutoModelForImageTextToText.from_pretrained(tiny_models.folder(design), attn_implementation=name)
        for name in ("eager", "sdpa")
    }
    for name, m in loaded.items():
        for part in (m.language_model, m.senses["audio"].encoder):
            assert part.config._attn_implementation == name
    # One sound, unpadded: Parakeet's eager attention under a mask is NaN in transformers 5.17.
    batch = inputs(design, MIXED[0])
    close(loaded["eager"](**batch).logits, loaded["sdpa"](**batch).logits, within=1e-4)


@torch.no_grad()
def test_outputs_as_a_tuple_and_with_hidden_states():
    ids = text(1, 4)
    assert torch.equal(model()(input_ids=ids, return_dict=False)[0], model()(input_ids=ids).logits)
    for labels in (None, ids):
        assert len(model()(input_ids=ids, labels=labels, output_hidden_states=True).hidden_states) == 3


@torch.no_grad()
def test_reading_on_from_a_cache_under_left_padding():
    ids = text(2, 6)
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    whole = model()(input_ids=ids, attention_mask=mask).logits[:, -1]
    first = model()(input_ids=ids[:, :4], attention_mask=mask[:, :4], use_cache=True)
    rest = model()(input_ids=ids[:, 4:], attention_mask=mask, past_key_values=first.past_key_values)
    close(rest.logits[:, -1], whole)


def test_the_bare_language_model_is_a_class_of_transformers():
    assert type(model().language_model) is LlamaForCausalLM
