"""LLaVA folders: transformers' own classes alone give the logits, the tokens and the pixels of our model."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree

import numpy as np
import PIL.Image
import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from trisense.chat import Conversation, Layout, Markers
from trisense.engines import open_engine
from trisense.errors import BadInput
from trisense.model.llava import chat_template, clip_image_processor, export_llava
from trisense.model.merge import merge
from trisense.preprocess import ImageProcessor

# LLaVA-1.5's choice of features and projector over Phi-3.5 (its head has no bias), written as `eden` writes.
MLP = (
    "design.senses.image={width: 16, layer: -2, select: patches, projector: mlp}",
    "design.pictures={height: 32, width: 32, tokens: 4}",
)
# As `context-gpt` takes them, over phi-2; its head has a bias, of zeros while nobody has trained it.
LINEAR = ()
# The last layer with CLS.
FULL = (
    "design.senses.image={width: 16, select: all, projector: mlp}",
    "design.pictures={height: 32, width: 32, tokens: 5}",
)
FITTING = {"mlp": ("eden", MLP), "linear": ("context-gpt", LINEAR), "full": ("eden", FULL)}


@pytest.mark.parametrize("case", FITTING)
def test_stock_classes_give_the_logits_and_the_answer_of_ours(case: str, tmp_path: Path):
    recipe, overrides = FITTING[case]
    folder, out = tiny_models.trained(recipe, *overrides), tmp_path / "llava"
    export_llava(folder, out)
    picture, question = tiny_models.picture(0), "What is it?"

    model, processor = LlavaForConditionalGeneration.from_pretrained(out).eval(), AutoProcessor.from_pretrained(out)
    assert isinstance(processor, LlavaProcessor)
    assert type(AutoModelForImageTextToText.from_pretrained(out)) is LlavaForConditionalGeneration
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert text.count("<image>") == 1
    inputs = processor(images=PIL.Image.fromarray(picture), text=text, return_tensors="pt")

    engine = open_engine(folder)
    prompt = engine.processor.prompt(Conversation.ask(question, images=[picture]))
    pictures = engine.processor.image
    assert pictures
    assert inputs["input_ids"][0].tolist() == prompt.ids.tolist()
    assert (
        (inputs["input_ids"] == model.config.image_token_id).sum() == pictures.tokens == model.config.image_seq_length
    )
    # A picture larger than what is kept of it: the two round the corners of the crop differently (`ImageProcessor`).
    assert np.abs(inputs["pixel_values"][0].numpy() - prompt.values[0]).max() <= 1.01 / 255 / min(pictures.std)
    inputs["pixel_values"] = torch.from_numpy(prompt.values[0])[None]
    with torch.inference_mode():
        ours = engine.model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"]).logits
        theirs = model(**inputs).logits
    torch.testing.assert_close(theirs, ours, atol=5e-4, rtol=1e-4)
    with torch.inference_mode():
        other = model(**{**inputs, "pixel_values": inputs["pixel_values"] + 1}).logits
    assert (other - theirs).abs().max() > 1e-2, "a model that does not look proves little"

    said = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0, len(prompt.ids) :].tolist()
    expected = list(engine.stream(engine.prefill(prompt), max_new_tokens=24))
    assert [token for token in said if token not in engine.processor.end_ids] == expected
    assert len(set(expected)) > 3, "a model that repeats itself proves little"
    machine = str(tiny_models.parts()).encode()
    assert not [file.name for file in out.rglob("*") if file.is_file() and machine in file.read_bytes()]


@pytest.mark.parametrize(
    "pictures",
    [
        ImageProcessor(height=32, width=32, tokens=4),
        ImageProcessor(height=32, width=32, shortest_edge=40, tokens=4),
        ImageProcessor(height=32, width=32, crop=False, resample="bilinear", mean=(0, 0, 0), std=(1, 1, 1), tokens=4),
    ],
)
def test_pixels_are_the_same(pictures: ImageProcessor):
    theirs = clip_image_processor(pictures)
    assert ImageProcessor.from_transformers(theirs.to_dict(), pictures.tokens).model_dump(
        exclude={"shortest_edge"}
    ) == pictures.model_dump(exclude={"shortest_edge"})
    for size in ((32, 32), (40, 40)):
        picture = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
        expected = theirs(picture, return_tensors="np")["pixel_values"][0]
        step = 0 if not pictures.crop or size == (pictures.shortest_edge or 32,) * 2 == (32, 32) else 1.01
        assert np.abs(pictures(picture) - expected).max() <= step / 255 / min(pictures.std) + 1e-5


def test_the_template_writes_what_the_layout_writes():
    from transformers.utils.chat_template_utils import render_jinja_template

    def markers(name: str) -> Markers:
        return Markers(f"<{name}>\n", f"</{name}> \"é😀'\\")

    names = ("system", "user", "image", "text", "question", "answer")
    template = chat_template(Layout(start="<s>", **{name: markers(name) for name in names}), "<image>")
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": t} for t in ("note", "why?")] + [{"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "so"}]},
        {"role": "user", "content": "and?"},
    ]
    (rendered,), _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=True)

    def wrapped(name: str, text: str) -> str:
        return markers(name).before + text + markers(name).after

    shown = wrapped("text", "note") + wrapped("image", "<image>") + wrapped("question", "why?")
    expected = "<s>" + wrapped("system", "be kind") + wrapped("user", shown) + wrapped("answer", "so")
    assert rendered == expected + wrapped("user", wrapped("question", "and?")) + markers("answer").before


def test_a_merged_model_of_ours_is_exported_too(tmp_path: Path):
    folder = tiny_models.trained("eden", *MLP)
    merge(folder, tmp_path / "merged")
    export_llava(tmp_path / "merged", tmp_path / "from-merged", "bfloat16")
    export_llava(folder, tmp_path / "from-parts", "bfloat16")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("from-merged", "from-parts"))
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert {value.dtype for value in one.values()} == {torch.bfloat16}


def test_what_llava_has_no_place_for_is_named(tmp_path: Path):
    biased = tmp_path / "biased"
    merge(tiny_models.trained("context-gpt"), biased)
    weights = load_file(biased / "model.safetensors")
    (name,) = [name for name in weights if name.endswith("lm_head.bias")]
    save_file(weights | {name: weights[name] + 1}, biased / "model.safetensors", metadata={"format": "pt"})
    copytree(biased, tmp_path / "full")
    for folder, out, expected in (
        (tiny_models.trained("jnana"), "out", r"senses.image.projector is 'residual'; LLaVA has 'mlp', or 'linear'"),
        (tiny_models.trained("eden"), "out", "senses.image.select is 'projected'; LLaVA has 'patches' or 'all'"),
        (tiny_models.folder(), "out", r"senses is \['audio', 'image'\]; LLaVA has eyes alone"),
        (biased, "out", r"head of this language model \(phi\) has a bias, and LLaVA's has none"),
        (biased, "full", "full: exists and is not an earlier export"),
        (tmp_path / "nothing", "out", "config.json: no such file"),
    ):
        with pytest.raises(BadInput, match=expected) as refusal:
            export_llava(folder, tmp_path / out)
        assert "\n" not in str(refusal.value)
    assert {path.name for path in tmp_path.iterdir()} == {"biased", "full"}
