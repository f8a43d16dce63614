"""A whole model -> a folder of `LlavaForConditionalGeneration` and `LlavaProcessor`, for transformers alone.

LLaVA-1.5 (Liu et al. 2023, arXiv:2310.03744) as transformers has it: CLIP's patches of one layer, Linear, activation,
Linear, and a causal language model whose head has no bias. What fits gives the same logits; what does not is refused.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, get_args

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from trisense.chat import Layout, Markers
from trisense.errors import BadInput
from trisense.model.checkpoint import quiet
from trisense.model.configuration import TrisenseConfig
from trisense.model.folders import whole_folder
from trisense.model.merge import Dtype, as_dtype, config_of, open_whole
from trisense.model.modeling import SCALED, TrisenseForConditionalGeneration
from trisense.model.publish import write_card
from trisense.model.senses import Sense
from trisense.preprocess import FILTERS, ImageProcessor
from trisense.prompt import Processor

IMAGE_TOKEN = "<image>"
# What our choice of features is called there: without the first token, CLS, or with it.
STRATEGIES = {"patches": "default", "all": "full"}


def export_llava(folder: str | os.PathLike[str], out: str | os.PathLike[str], dtype: Dtype = "float32") -> None:
    """Writes the model or the trained parts of `folder` into `out` as LLaVA, whole or not at all.

    For the same pixels and ids, float32 gives the same logits; dtype is that of the weights on disk. The chat template
    writes what our layout writes, but a template is one string and is tokenised as one: where a tokenizer joins letters
    across the end of a segment, ids differ from ours, and a special token that someone types becomes one.

    Raises BadInput naming the field for which LLaVA has no place, for an `out` that holds something, and as
    `open_whole` does.
    """
    folder = Path(folder)
    if dtype not in get_args(Dtype):
        raise BadInput(f"dtype {dtype!r}: unknown; expected one of {', '.join(get_args(Dtype))}")
    with whole_folder(Path(out)) as aside:
        _check(config_of(folder), folder)
        model, processor = open_whole(folder)
        token = image_token(processor)
        with quiet():
            as_dtype(llava_model(model, processor, folder), dtype).save_pretrained(aside)
            llava_processor(model, processor, token).save_pretrained(aside)
        write_card(aside, folder, "llava")


def _check(config: TrisenseConfig, folder: Path) -> None:
    """Refuses, by its config alone, a model that LLaVA cannot be."""

    def refuse(field: str, value: Any, expected: str) -> None:
        raise BadInput(f"{folder}: {field} is {value!r}; LLaVA has {expected}")

    senses = config.senses or {}
    if list(senses) != ["image"]:
        refuse("senses", sorted(senses), "eyes alone: expected ['image']")
    options = config.options("image")
    if config.vision_config.model_type != "clip_vision_model":
        refuse("vision_config.model_type", config.vision_config.model_type, "'clip_vision_model'")
    if options.select not in STRATEGIES:
        refuse("senses.image.select", options.select, f"{' or '.join(map(repr, STRATEGIES))}")
    if options.projector not in ("linear", "mlp"):
        refuse("senses.image.projector", options.projector, "'mlp', or 'linear' with an identity after it")
    for key in SCALED:
        if (value := getattr(config.text_config, key, None)) not in (None, 1, 1.0):
            refuse(f"text_config.{key}", value, "no such step after its head")


def llava_model(
    model: TrisenseForConditionalGeneration, processor: Processor, folder: Path
) -> LlavaForConditionalGeneration:
    """LLaVA around the very modules of `model`, which is not copied.

    Raises BadInput for a language model whose head has a bias other than zero (phi-2).
    """
    sense, language_model = model.senses["image"], model.language_model
    assert isinstance(sense, Sense)
    pictures = processor.image
    assert pictures is not None
    head: Any = language_model.get_output_embeddings()
    if head.bias is not None and bool(head.bias.any()):
        kind = model.config.text_config.model_type
        raise BadInput(f"{folder}: the head of this language model ({kind}) has a bias, and LLaVA's has none")
    config = LlavaConfig(
        text_config=model.config.text_config,
        vision_config=model.config.vision_config,
        image_token_index=processor.placeholders["image"],
        image_seq_length=pictures.tokens,
        projector_hidden_act="linear" if sense.options.projector == "linear" else "gelu",
        vision_feature_select_strategy=STRATEGIES[sense.options.select],  # pyright: ignore[reportArgumentType]
        vision_feature_layer=sense.options.layer,
        multimodal_projector_bias=True,
    )
    with torch.device("meta"):
        llava = LlavaForConditionalGeneration(config)
    llava.model.vision_tower = sense.encoder
    llava.model.language_model = language_model.get_decoder()
    llava.lm_head = nn.Linear(head.in_features, head.out_features, bias=False, device="meta")
    llava.lm_head.weight = head.weight
    linear = [layer for layer in sense.projector.modules() if isinstance(layer, nn.Linear)]
    llava.model.multi_modal_projector.linear_1 = linear[0]
    llava.model.multi_modal_projector.linear_2 = linear[1] if len(linear) > 1 else _identity(linear[0].out_features)
    ends = sorted(processor.end_ids)
    llava.generation_config = GenerationConfig(
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else None,
        suppress_tokens=[processor.placeholders["image"]],  # a hole for a picture is never a word of an answer
    )
    return llava.requires_grad_(False).eval()


def _identity(width: int) -> nn.Linear:
    layer = nn.Linear(width, width)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(width))
        layer.bias.zero_()
    return layer


def llava_processor(model: TrisenseForConditionalGeneration, processor: Processor, token: str) -> LlavaProcessor:
    """LlavaProcessor with the pixels of our own processor, and a chat template with its layout."""
    assert processor.image is not None
    end = processor.tokenizer.token(min(processor.end_ids)) if processor.end_ids else None
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_with_token(processor, token),
        eos_token=end,
        pad_token=end,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    return LlavaProcessor(
        image_processor=clip_image_processor(processor.image),
        tokenizer=tokenizer,
        patch_size=model.config.vision_config.patch_size,
        vision_feature_select_strategy=STRATEGIES[model.config.options("image").select],
        chat_template=chat_template(processor.layout, token),
        image_token=token,
        num_additional_image_tokens=1,  # CLS, which "default" takes away again
    )


def clip_image_processor(pictures: ImageProcessor) -> CLIPImageProcessorPil:
    """transformers' own, which resamples as ours does, with Pillow.

    A folder names it `CLIPImageProcessor`, as which transformers takes its other one where torchvision is installed;
    that has an antialiasing of its own and differs by a few steps of 255.
    """
    edge = {"shortest_edge": pictures.shortest_edge or min(pictures.height, pictures.width)}
    whole = {"height": pictures.height, "width": pictures.width}
    return CLIPImageProcessorPil(
        size=edge if pictures.crop else whole,
        do_center_crop=pictures.crop,
        crop_size=whole,
        resample=int(FILTERS[pictures.resample]),
        image_mean=list(pictures.mean),
        image_std=list(pictures.std),
    )


def image_token(processor: Processor) -> str:
    """How the placeholder is written: by its own name, or as `<image>` where it is a spare row without one.

    Raises BadInput for a tokenizer that has an `<image>` of another number.
    """
    number = processor.placeholders["image"]
    if (own := processor.tokenizer.token(number)) is not None:
        return own
    if (other := processor.tokenizer.id(IMAGE_TOKEN)) is not None:
        raise BadInput(f"placeholders.image: {number}, but the tokenizer has {IMAGE_TOKEN} as {other}; use that")
    return IMAGE_TOKEN


def _with_token(processor: Processor, token: str) -> Tokenizer:
    """The tokenizer with the placeholder as a special token under its own number.

    An added token gets the next free number, unless the vocabulary says another: so it, and those added before it,
    stand there as well. What adds tokens at the ends is left out, as a layout writes its own.
    """
    description = json.loads(processor.tokenizer.to_json())
    description["post_processor"] = None
    number, added = processor.placeholders["image"], description["added_tokens"]
    if processor.tokenizer.token(number) is None:
        vocabulary = description["model"]["vocab"]
        if not isinstance(vocabulary, dict):
            kind = description["model"]["type"]
            raise BadInput(f"placeholders.image: {number} is a spare row, which a {kind} tokenizer cannot name")
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        added.append({"id": number, "content": token, **flags})
        vocabulary.update({one["content"]: one["id"] for one in added})
    return Tokenizer.from_str(json.dumps(description))


def chat_template(layout: Layout, token: str) -> str:
    """The layout as transformers' Jinja template. As `render` does, it writes a turn's question last."""

    def quoted(text: str) -> str:
        return json.dumps(text, ensure_ascii=False)

    def written(markers: Markers, what: str) -> str:
        return f"{{{{ {quoted(markers.before)} + {what} + {quoted(markers.after)} }}}}"

    texts = "{% set said = message.content if message.content is string else (message.content | map(attribute='text') "
    texts += "| join) %}"
    return "".join(
        (
            f"{{{{ {quoted(layout.start)} }}}}{{% for message in messages %}}",
            "{% if message.role == 'system' %}",
            texts + written(layout.system, "said"),
            "{% elif message.role == 'assistant' %}",
            texts + written(layout.answer, "said"),
            "{% else %}",
            f"{{{{ {quoted(layout.user.before)} }}}}",
            "{% set content = [{'type': 'text', 'text': message.content}] if message.content is string "
            "else message.content %}",
            "{% set last = namespace(text=-1) %}",
            "{% for part in content %}{% if part.type == 'text' %}{% set last.text = loop.index0 %}{% endif %}"
            "{% endfor %}",
            "{% for part in content %}{% if part.type == 'image' %}",
            written(layout.image, quoted(token)),
            "{% elif loop.index0 != last.text %}",
            written(layout.text, "part.text"),
            "{% endif %}{% endfor %}{% if last.text >= 0 %}",
            written(layout.question, "content[last.text].text"),
            "{% endif %}",
            f"{{{{ {quoted(layout.user.after)} }}}}",
            "{% endif %}{% endfor %}",
            f"{{% if add_generation_prompt %}}{{{{ {quoted(layout.answer.before)} }}}}{{% endif %}}",
        )
    )
