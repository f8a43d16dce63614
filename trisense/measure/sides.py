"""What `trisense bench train` compares: this package, LLaVA as transformers has it, and one forward per token.

All of them have the same weights and learn from the same samples: random numbers in published shapes and lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

from trisense.chat import Image, Slot
from trisense.data.batches import Batch
from trisense.measure.published import Kind, lengths
from trisense.model.attention import SEGMENTS
from trisense.model.configuration import TrisenseConfig, sub_config
from trisense.model.loss import fuse_activations
from trisense.model.modeling import TrisenseForConditionalGeneration
from trisense.model.parts import published
from trisense.model.projector import build_projector
from trisense.model.senses import Sense, build_encoder
from trisense.prompt import Prompt
from trisense.stage import FileStage
from trisense.train.blocks import Compiled
from trisense.train.learner import Learner
from trisense.train.optim import make_optimizer

CLIP = "openai/clip-vit-base-patch32"
LORA = {"phi": ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"), "phi3": ("o_proj", "qkv_proj", "gate_up_proj")}
# `small` is phi-2's design in the size that two cores can train; in all of them LLaVA's batch is that of the recipes.
SMALL = {
    "model_type": "phi",
    "vocab_size": 51200,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "partial_rotary_factor": 0.5,
    "tie_word_embeddings": False,
}
TINY = {**SMALL, "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
TINY_CLIP = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
BATCH = 2

# Letters: B rows, T positions, N pictures, S feature vectors of one, E their width, D width of the language model.


@dataclass(frozen=True)
class Shapes:
    """text, vision: configurations of transformers as plain dicts. rank: of the adapter of `instruct`."""

    text: dict[str, Any]
    vision: dict[str, Any]
    rank: int = 64

    @property
    def tokens(self) -> int:
        return (self.vision["image_size"] // self.vision["patch_size"]) ** 2

    @property
    def placeholder(self) -> int:
        return self.text["vocab_size"] - 1


def shapes_of(size: str) -> Shapes:
    parts = published()
    clip = {**parts[CLIP]}
    return {
        "tiny": Shapes(TINY, {**clip, **TINY_CLIP, "image_size": 32, "patch_size": 16}, rank=4),
        "small": Shapes(SMALL, clip),
        "phi-2": Shapes(parts["microsoft/phi-2"], clip),
        "phi-3.5": Shapes(parts["microsoft/Phi-3.5-mini-instruct"], clip),
    }[size]


@dataclass(frozen=True)
class Task:
    """Samples about pictures: prompts[i] is about picture `about[i]`, whose pixels are pixels[about[i]]."""

    kind: Kind
    prompts: tuple[Prompt, ...]
    about: tuple[int, ...]
    pixels: torch.Tensor  # [N, 3, H, W]


def make_task(kind: Kind, shapes: Shapes, pictures: int, seed: int) -> Task:
    """Random pictures and random words in the lengths of real ones, as `lengths` draws them."""
    rng = np.random.default_rng(seed)
    words = shapes.placeholder - 1
    prompts, about = [], []
    for picture in range(pictures):
        for asked, said in lengths(kind, rng):
            before = shapes.tokens + 4  # the picture, and a layout's words behind it
            ids = rng.integers(0, words, before + asked + said + 1)
            ids[: shapes.tokens] = shapes.placeholder
            ids[shapes.tokens : before] = np.arange(4) % words  # the layout's words are the same everywhere
            mask = np.arange(len(ids)) >= before + asked
            prompts.append(Prompt(ids, mask, (Slot("image", 0, shapes.tokens, Image(image=b"")),), ()))
            about.append(picture)
    size = shapes.vision["image_size"]
    pixels = torch.from_numpy(rng.standard_normal((pictures, 3, size, size), np.float32))
    return Task(kind, tuple(prompts), tuple(about), pixels)


def stage_of(kind: Kind, **options: Any) -> FileStage:
    """Rates do not matter for speed; the small ones keep both sides at nearly the same weights."""
    return FileStage(learns="caption" if kind == "align" else "instruct", steps=1, lr=1e-5, **options)


class Ours:
    """This package: features computed before, packed rows, shared pictures, logits at answers only."""

    def __init__(self, shapes: Shapes, kind: Kind, device: str, encoder: bool = True, **of_stage: Any):
        """encoder: False leaves CLIP out, as a run does once it has its features. of_stage: its options."""
        torch.manual_seed(0)
        stage = stage_of(kind, **of_stage)
        senses = {"image": {"width": shapes.vision["hidden_size"], "select": "patches", "projector": "mlp"}}
        config = TrisenseConfig(
            text_config=dict(shapes.text),
            vision_config=dict(shapes.vision),
            senses=senses,
            placeholders={"image": shapes.placeholder},
        )
        with torch.device("meta"):
            self.model = TrisenseForConditionalGeneration(config)
        with torch.device(device):
            self.model.language_model = AutoModelForCausalLM.from_config(config.text_config)
            hidden = self.model.get_input_embeddings().embedding_dim
            self.sense.projector = build_projector("mlp", shapes.vision["hidden_size"], cast(int, hidden))
            options = self.sense.options
            self.sense.encoder = (
                build_encoder("image", options, config.vision_config) if encoder else cast(Any, nn.Identity())
            )
        _prepare(self.model, self.model.language_model, self.sense.projector, shapes, kind, device)
        if device == "cpu":
            self.model.language_model.set_attn_implementation(SEGMENTS)
        if stage.gradient_checkpointing:
            self.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
        fuse_activations(self.model)
        self.learner = Learner(self.model).train()
        self.optimizer = make_optimizer(self.learner, stage)
        self.device = torch.device(device)
        self.half = stage.precision == "bf16"
        self.blocks = Compiled(self.learner, self.device, "compile") if stage.compile else nullcontext()

    @property
    def sense(self) -> Sense:
        return cast(Sense, self.model.senses["image"])

    @torch.inference_mode()
    def features(self, pixels: torch.Tensor) -> np.ndarray:
        """[N, S, E] float32."""
        parts = [self.sense.encode(part.to(self.device)).float().cpu().numpy() for part in pixels.split(16)]
        return np.concatenate(parts)

    def gradient(self, batch: Batch) -> float:
        """Loss summed over the supervised tokens; its mean's gradient is added up."""
        with self.blocks:
            with _half(self.device, self.half):
                loss = self.learner(**batch.to(self.device).inputs, num_items_in_batch=batch.items).loss
            loss.backward()
        return float(loss.detach()) * batch.items


class Theirs:
    """transformers' LLaVA: CLIP in every step, padded batches of two, logits everywhere."""

    def __init__(self, shapes: Shapes, kind: Kind, device: str):
        torch.manual_seed(0)
        config = LlavaConfig(
            vision_config=cast(CLIPVisionConfig, sub_config("vision", dict(shapes.vision))),
            text_config=sub_config("text", dict(shapes.text)),
            image_token_index=shapes.placeholder,
            projector_hidden_act="gelu",
            vision_feature_layer=-1,
            image_seq_length=shapes.tokens,
        )
        with torch.device(device):
            self.model = LlavaForConditionalGeneration(config)
        self.kind = kind
        inner = self.model.model
        _prepare(self.model, inner.language_model, inner.multi_modal_projector, shapes, kind, device)
        self.model.train()
        self.optimizer = make_optimizer(self.model, stage_of(kind))
        self.device = torch.device(device)

    def copy(self, ours: Ours) -> None:
        """Takes over all weights."""
        theirs = self.model.model
        theirs.language_model.load_state_dict(ours.model.language_model.get_decoder().state_dict())
        theirs.vision_tower.load_state_dict(ours.sense.encoder.state_dict())
        self.model.lm_head.weight.data.copy_(ours.model.get_output_embeddings().weight)  # pyright: ignore
        for mine, own in zip(theirs.multi_modal_projector.parameters(), ours.sense.projector.parameters(), strict=True):
            mine.data.copy_(own.data)

    def batch(self, task: Task, members: Sequence[int]) -> dict[str, torch.Tensor]:
        longest = max(len(task.prompts[i].ids) for i in members)
        ids = np.zeros((len(members), longest), np.int64)
        mask, labels = np.zeros_like(ids), np.full_like(ids, -100)
        for row, i in enumerate(members):
            prompt = task.prompts[i]
            ids[row, : len(prompt.ids)], mask[row, : len(prompt.ids)] = prompt.ids, 1
            labels[row, : len(prompt.ids)] = np.where(prompt.mask, prompt.ids, -100)
        tensors = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        inputs = {name: torch.from_numpy(array).to(self.device) for name, array in tensors.items()}
        pixels = task.pixels[[task.about[i] for i in members]].to(self.device)
        return {**inputs, "pixel_values": pixels.to(self.model.model.vision_tower.dtype)}

    def gradient(self, task: Task, members: Sequence[int], items: int) -> float:
        """Loss summed over the supervised tokens, as `Ours.gradient`, in batches of two. items: of all of them."""
        total = 0.0
        for start in range(0, len(members), BATCH):
            inputs = self.batch(task, members[start : start + BATCH])
            with _half(self.device):
                loss = self.model(**inputs, num_items_in_batch=torch.tensor(items, device=self.device)).loss
            loss.backward()
            total += float(loss.detach()) * items
        return total


class TokenByToken:
    """The loop of seeds 1 and 2: for every token of the captions one forward over all that comes before it."""

    def __init__(self, theirs: Theirs):
        self.theirs = theirs

    def gradient(self, task: Task, members: Sequence[int], items: int) -> float:
        model, total = self.theirs.model, 0.0
        for start in range(0, len(members), BATCH):
            inputs = self.theirs.batch(task, members[start : start + BATCH])
            labels = inputs.pop("labels")
            mask = inputs.pop("attention_mask")
            with _half(self.theirs.device):
                pictures = model.model.get_image_features(
                    inputs["pixel_values"], vision_feature_layer=-1, vision_feature_select_strategy="default"
                )
                vectors = torch.cat(list(cast(Any, pictures).pooler_output))
                embeddings = model.get_input_embeddings()(inputs["input_ids"])
                slots = inputs["input_ids"] == model.config.image_token_id
                embeddings = embeddings.masked_scatter(slots[..., None], vectors.to(embeddings))
                loss = torch.zeros((), device=self.theirs.device)
                for place in (labels != -100).any(0).nonzero()[:, 0].tolist():
                    out = model.model.language_model(
                        inputs_embeds=embeddings[:, :place], attention_mask=mask[:, :place], use_cache=False
                    )
                    logits = model.lm_head(out.last_hidden_state)[:, -1].float()
                    loss = loss + nn.functional.cross_entropy(logits, labels[:, place], reduction="sum") / items
            loss.backward()
            total += float(loss.detach()) * items
        return total


def _prepare(model: Any, language_model: Any, projector: nn.Module, shapes: Shapes, kind: Kind, device: str) -> None:
    """Freezes all but the projector, and puts an adapter beside the language model for `instruct`.

    Without dropout, so that both sides compute the same. On a GPU what is frozen is bfloat16.
    """
    model.requires_grad_(False)
    if device != "cpu":
        for parameter in model.parameters():  # not the angles of the rotary embedding, which are a buffer
            parameter.data = parameter.data.to(torch.bfloat16)
    projector.to(torch.float32).requires_grad_(True)
    if kind == "align":
        return
    from peft import LoraConfig

    language_model.add_adapter(
        LoraConfig(r=shapes.rank, lora_alpha=16, lora_dropout=0.0, target_modules=list(LORA[shapes.text["model_type"]]))
    )


def _half(device: torch.device, on_cpu: bool = False) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=on_cpu or device.type != "cpu")
