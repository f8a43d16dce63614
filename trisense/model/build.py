"""Recipe -> model and processor, from nothing or from a smaller model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

from trisense.errors import BadInput
from trisense.model.modeling import TrisenseForConditionalGeneration
from trisense.model.parts import design_config
from trisense.model.senses import Sense
from trisense.prompt import Processor
from trisense.recipe import Design
from trisense.tokens import TextTokenizer

# Queries and keys of new attention are so much larger than drawn. As drawn, a token's like among a hundred others gets
# a few hundredths of the attention, and what is read there is lost; larger still, a token sees only itself
# (docs/log.md).
SHARPNESS = 1.6
# How far back, in tokens, the heads of a first layer with biases look when they begin (`Anna has the red cup` puts four
# between a person and a thing), and how much larger the logit there is: at 14 neighbours get some of the attention too.
LOOK_BACK = (1, 2, 3, 5)
STRENGTH = 14.0
# A layer among others, in the name of a weight; and the parts by which a layer of Llama or Parakeet adds to what it was
# given.
LAYER = re.compile(r"(.*\.layers)\.(\d+)\.(.*)")
ADDS = {"o_proj", "down_proj", "linear2", "pointwise_conv2"}


def train_tokenizer(texts: Iterable[str], design: Design) -> TextTokenizer:
    """A byte-level BPE of `design.vocabulary` tokens; the layout's strings and the placeholders are special tokens.

    Any text can be written in it. Every segment of a prompt begins as if a space stood before it, so a word is the same
    token at the start of a question and inside it.
    """
    special = [string for string in design.layout.strings() if string]
    special += [token for token in design.placeholders.values() if isinstance(token, str)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=design.vocabulary,
        special_tokens=list(
            dict.fromkeys([*special, *(t for t in design.placeholders.values() if isinstance(t, str))])
        ),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return TextTokenizer(tokenizer)


def build_processor(design: Design, tokenizer: TextTokenizer) -> Processor:
    """The processor of a design; its placeholders are tokens of the tokenizer."""
    placeholders: dict[str, int] = {}
    for sense, token in design.placeholders.items():
        if (number := token if isinstance(token, int) else tokenizer.id(token)) is None:
            raise BadInput(f"design.placeholders.{sense}: {token!r} is not a token of the tokenizer")
        placeholders[sense] = number
    return Processor(tokenizer, design.layout, design.pictures, design.sounds, placeholders)


def build_model(design: Design, processor: Processor) -> TrisenseForConditionalGeneration:
    """The model of a design with random weights (torch's generator: seed it first).

    Raises BadInput for a design with a pretrained part or without a token that ends an answer, and for whatever
    `TrisenseConfig` refuses.
    """
    for part in ("text", "vision", "audio"):
        if "pretrained" in (getattr(design, part) or {}):
            raise BadInput(f"design.{part}: is pretrained, and this model begins from nothing; give a model_type")
    if not processor.end_ids:
        raise BadInput("design.layout.answer.after: empty; an answer needs a token that ends it")
    end = min(processor.end_ids)
    own = {"vocab_size": processor.tokenizer.size, "eos_token_id": end, "pad_token_id": end}
    model = TrisenseForConditionalGeneration(design_config(design, processor.placeholders, **own))
    if "audio" in model.senses:
        _wake(cast(Sense, model.senses["audio"]).encoder)
    _look_alike(model.language_model)
    _look_back(model.language_model)
    return model


@torch.no_grad()
def begin_with(
    model: TrisenseForConditionalGeneration,
    tokenizer: TextTokenizer,
    other: TrisenseForConditionalGeneration,
    other_tokenizer: TextTokenizer,
) -> list[str]:
    """Gives `model` the weights of another one, whose tokenizer may have learned other words; returns the parts of its
    senses that the other has not or has in another shape, which begin from nothing.

    A token that both have keeps its embedding; a new one begins as the mean of those that the other model would have
    written it with. Of more layers than the other has, the new ones stand between its own and begin by adding nothing
    (after Net2DeeperNet, Chen et al. 2016, arXiv:1511.05641), where it is known by what they add. Raises BadInput where
    the language model has fewer layers, or a weight of another shape.
    """
    own, theirs = model.state_dict(), other.state_dict()
    anew: list[str] = []
    deeper: dict[str, int] = {}
    before = _depths(theirs)
    for stack, depth in _depths(own).items():
        adds = any(name.startswith(f"{stack}.") and ADDS & set(name.split(".")) for name in own)
        if adds and depth > before.get(stack, depth):
            deeper[stack] = depth
        elif depth < before.get(stack, depth):
            if not stack.startswith("senses."):
                raise BadInput(f"the model to begin with has {before[stack]} layers in {stack}, this design {depth}")
            anew.append(_part(stack))
    theirs = _grown(own, theirs, deeper)
    embeddings = {f"language_model.{name}" for name, _ in model.language_model.named_parameters() if "embed" in name}
    embeddings |= {name for name in own if name.endswith("lm_head.weight")}
    for name, weight in own.items():
        found = theirs.get(name)
        if found is None or (found.shape != weight.shape and name not in embeddings):
            if name.startswith("senses."):
                anew.append(_part(name))
                continue
            shape = "nothing" if found is None else f"{list(found.shape)}"
            raise BadInput(f"the model to begin with has {shape} for {name}, this design {list(weight.shape)}")
    for name, weight in own.items():
        if name.startswith(tuple(f"{part}." for part in anew)):
            continue
        found = theirs[name]
        if name not in embeddings:
            weight.copy_(found)
            continue
        for number in range(tokenizer.size):
            token = tokenizer.token(number) or ""
            known = other_tokenizer.id(token)
            pieces = [known] if known is not None else other_tokenizer.plain(tokenizer.decode([number]))
            if pieces:
                weight[number] = found[pieces].float().mean(0).to(weight)
    return list(dict.fromkeys(anew))


def _part(name: str) -> str:
    """The part of a sense that a weight belongs to: `senses.image.encoder`."""
    return ".".join(name.split(".")[:3])


def _depths(weights: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """How many layers each stack of layers has, by what its weights' names begin with."""
    found: dict[str, int] = {}
    for name in weights:
        if layer := LAYER.fullmatch(name):
            found[layer[1]] = max(found.get(layer[1], 0), int(layer[2]) + 1)
    return found


def _grown(
    own: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor], depths: Mapping[str, int]
) -> dict[str, torch.Tensor]:
    """The weights `theirs` with layers of `own` between them, in the stacks of `depths` as many as it says. A new layer
    is as it was drawn but for what it adds, which is nothing, and for Parakeet's normalisation at its end, which
    leaves alone, as nearly as it can, what the layer before has normalised."""
    before = _depths(theirs)
    # Where the layers of a stack that grows come to stand.
    places = {stack: [k * depth // before[stack] for k in range(before[stack])] for stack, depth in depths.items()}
    found: dict[str, torch.Tensor] = {}
    for name, weight in theirs.items():
        layer = LAYER.fullmatch(name)
        if layer and layer[1] in places:
            name = f"{layer[1]}.{places[layer[1]][int(layer[2])]}.{layer[3]}"
        found[name] = weight
    for name, weight in own.items():
        layer = LAYER.fullmatch(name)
        if not (layer and layer[1] in places) or int(layer[2]) in places[layer[1]]:
            continue
        stack, number, part = layer[1], int(layer[2]), layer[3]
        if ADDS & set(part.split(".")):
            weight = torch.zeros_like(weight)
        elif part.startswith("norm_out."):
            below = max(place for place in places[stack] if place < number)
            scale, shift = (found[f"{stack}.{below}.norm_out.{one}"].float() for one in ("weight", "bias"))
            spread = (scale.square().mean() + shift.var(correction=0)).sqrt()
            weight = torch.full_like(weight, float(spread if part.endswith("weight") else shift.mean()))
        found[name] = weight
    return found


def _look_alike(language_model: nn.Module) -> None:
    """Attention that begins by looking for tokens like its own and copying what it finds (after mimetic
    initialisation, Trockman & Kolter 2023): keys as queries, outputs as transposed values.

    To find a word again, in a text, a picture or a sound, is the first step of nearly every answer, and random weights
    need long to come upon it. A language model with other names or grouped keys keeps its own weights.
    """
    for module in language_model.modules():
        found = [getattr(module, name, None) for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
        weights = [part.weight for part in found if isinstance(part, nn.Linear)]
        if len(weights) < 4:
            continue
        query, key, value, output = weights
        with torch.no_grad():
            if query.shape == key.shape:
                key.copy_(query.mul_(SHARPNESS))
            if output.shape == value.T.shape:
                output.copy_(value.T)


def _look_back(language_model: nn.Module) -> None:
    """A first layer whose heads begin by copying what stands 1, 2, 3 and 5 places before.

    A thing in a note then carries who has it, and the layers above find the one by the other; without, that is not
    learned in the time (docs/log.md). Rotary positions turn queries and keys by their place, so constant ones, which is
    to say biases, attend by distance alone, in Llama's order of the turned pairs. A language model without biases
    there, with grouped keys or without rotary positions over whole heads keeps its own weights.
    """
    attention: Any = next((m for m in language_model.modules() if hasattr(m, "q_proj") and hasattr(m, "k_proj")), None)
    rotary: Any = next((m for name, m in language_model.named_modules() if name.endswith("rotary_emb")), None)
    if attention is None or rotary is None:
        return
    query, key = attention.q_proj, attention.k_proj
    turns = rotary.inv_freq  # [half a head] radians a place
    width = 2 * len(turns)
    if query.bias is None or query.weight.shape != key.weight.shape or getattr(attention, "head_dim", None) != width:
        return
    fast = (turns > 0.02).to(turns)  # slower ones can hardly tell one place from the next
    size = fast * (STRENGTH * width**0.5 / fast.sum()) ** 0.5
    with torch.no_grad():
        for head in range(len(query.bias) // width):
            rows, back = slice(head * width, (head + 1) * width), LOOK_BACK[head % len(LOOK_BACK)]
            key.bias[rows] = torch.cat([size, 0 * size])
            query.bias[rows] = torch.cat([size * torch.cos(back * turns), -size * torch.sin(back * turns)])
        query.weight.mul_(0.1)  # what stands there still counts, but less than how far away it is
        key.weight.mul_(0.1)


def _wake(encoder: nn.Module) -> None:
    """Variance-preserving weights (He et al. 2015, Glorot & Bengio 2010) for an encoder that starts from nothing.

    transformers draws Parakeet's with a deviation of 0.02, meant for widths of a thousand; in a narrow one the signal
    is gone after the strided convolutions, and CTC stays on its plateau.
    """
    for module in encoder.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
