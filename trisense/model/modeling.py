"""`TrisenseForConditionalGeneration`: embed, splice the senses in, run the language model."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GenerationMixin,
    LogitsProcessorList,
    PreTrainedModel,
    SuppressTokensLogitsProcessor,
)
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from trisense.model.attention import SEGMENTS, Packed, pieces, visible
from trisense.model.configuration import ENCODER_CONFIG, TrisenseConfig
from trisense.model.loss import head_loss
from trisense.model.senses import Sense

# Letters: B rows, T positions, D width of the language model, V vocabulary, N media, S feature vectors of one medium,
# E width of an encoder, M mel bins, F log-mel frames.

# The arguments of `forward` that bring what a sense reads.
VALUES = {"image": "pixel_values", "audio": "input_features"}
MEDIA = (*VALUES.values(), "input_features_mask", "image_features", "audio_features", "audio_lengths")
# By these a language model changes what its head gives; the loss here takes the head as it is.
SCALED = ("final_logit_softcapping", "logit_scale", "logits_scaling")


class TrisenseForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """A causal language model that reads pictures and sound where placeholders stand in its prompt.

    The design is LLaVA's (Liu et al. 2023), which the five recipes share: encoder -> projector -> language model; every
    placeholder token is one feature vector. All parts are unchanged transformers classes.
    """

    config_class = TrisenseConfig
    config: TrisenseConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: TrisenseConfig):
        super().__init__(config)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.placeholders: dict[str, int] = dict(config.placeholders or {})
        hidden_size = self.language_model.get_input_embeddings().embedding_dim
        # In a fixed order: a config read back from json has its keys sorted, and optimisers count parameters by order.
        self.senses = nn.ModuleDict(
            {
                name: Sense(name, config.options(name), config.encoder_config(name), hidden_size)
                for name in ENCODER_CONFIG
                if name in (config.senses or {})
            }
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.language_model.set_output_embeddings(new_embeddings)

    def embed(self, input_ids: torch.Tensor, media: dict[str, torch.Tensor | None]) -> torch.Tensor:
        """Input embeddings [B, T, D] with each placeholder replaced by its feature vector.

        media: the media arguments of `forward`, by name. One masked write per sense; text alone costs nothing more.

        Raises:
            ValueError: placeholders and feature vectors differ in number; both counts are named.
        """
        embeddings = self.get_input_embeddings()(input_ids)  # [B, T, D]
        for name, argument in VALUES.items():
            values, features = media.get(argument), media.get(f"{name}_features")
            given = values is not None or features is not None
            if name not in self.senses:
                if given:
                    raise ValueError(f"an {name} was given but this model has no {name} sense")
                continue
            slots = input_ids == self.placeholders[name]  # [B, T]
            count = int(slots.sum())
            if not given and count:
                raise ValueError(f"the prompt has {count} {name} placeholders but no {name} was given")
            if not given:
                continue
            mask = media.get("input_features_mask") if name == "audio" else None
            vectors = self.senses[name](values, mask, features, media.get(f"{name}_lengths"))  # [sum of lengths, D]
            if count != len(vectors):
                raise ValueError(
                    f"the prompt has {count} {name} placeholders but the {name}s give {len(vectors)} vectors"
                )
            # The one place for precision: whatever encoder and projector compute in, the language model's dtype rules.
            embeddings = embeddings.masked_scatter(slots[..., None], vectors.to(embeddings))
        return embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        input_features: torch.FloatTensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        image_features: torch.FloatTensor | None = None,
        audio_features: torch.FloatTensor | None = None,
        audio_lengths: torch.LongTensor | None = None,
        segments: torch.LongTensor | None = None,
        branches: torch.LongTensor | None = None,
        predicted_from: torch.LongTensor | None = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        label_smoothing: float = 0.0,
        return_logits: bool = True,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """One pass.

        Args:
            input_ids: [B, T] int64, with placeholders. Or `inputs_embeds` [B, T, D], already spliced.
            attention_mask: [B, T], 1 on real tokens; positions count real tokens only, so left padding changes nothing.
            labels: [B, T] int64, aligned with `input_ids` (shifted here, once), -100 where nothing is supervised.
            pixel_values: [N, 3, H, W] float, all pictures of the batch in the order of their placeholders.
            input_features: [N, M, F] float log-mel; input_features_mask: [N, F], 1 on real frames.
            image_features: [N, S, E], audio_features: [N, S, E] with audio_lengths [N]: features of a frozen encoder,
                computed before, in place of pixels and mels.
            segments, branches: [B, T] int64, for rows of several samples and for fans, in place of `attention_mask` and
                with `position_ids`: who may look at whom, as `trisense.model.attention.visible` says.
            predicted_from: [B, T] int64, the place in its row from which each label is predicted, where that is not the
                place before (the first token of a branch).
            num_items_in_batch: divides the summed loss (token-weighted accumulation); default: the supervised tokens.
            label_smoothing: share of a target's probability that is spread over all tokens.
            return_logits: False lets a frozen head go without them, which is faster and takes less memory.

        Returns:
            `logits` [B, T, V]; with `labels`, `loss` and `logits` [supervised, V] only: the head runs nowhere else.

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds`; media with `inputs_embeds`; placeholders and
                feature vectors that differ in number; labels for a language model that scales its logits; packed
                samples longer than the window through which a language model looks.
        """
        media = {
            "pixel_values": pixel_values,
            "input_features": input_features,
            "input_features_mask": input_features_mask,
            "image_features": image_features,
            "audio_features": audio_features,
            "audio_lengths": audio_lengths,
        }
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if input_ids is not None:
            spliced = self.embed(input_ids, media)
        else:
            _refuse_media(media)
            spliced = cast(torch.Tensor, inputs_embeds)
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
            # The mask also covers what is in the cache.
            position_ids = (attention_mask.long().cumsum(1) - 1).clamp(min=0)[:, -spliced.shape[1] :]
        inputs = {
            "inputs_embeds": spliced,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            # A cache in training would also make packed samples attend to each other.
            "use_cache": use_cache if labels is None else False,
            **kwargs,
        }
        if segments is not None and branches is not None and position_ids is not None:
            inputs |= self._attention(segments, branches, position_ids)
        if labels is None:
            return self.language_model(**inputs, logits_to_keep=logits_to_keep)
        if scaled := [key for key in SCALED if getattr(self.config.text_config, key, None) not in (None, 1, 1.0)]:
            raise ValueError(f"a language model with {scaled[0]} cannot be trained: the loss takes its logits unscaled")
        out = self.language_model.get_decoder()(**inputs)
        if predicted_from is None:
            hidden = out.last_hidden_state[:, :-1][labels[:, 1:] != -100]  # [supervised, D]
            targets = labels[:, 1:][labels[:, 1:] != -100]
        else:
            rows, places = (labels != -100).nonzero(as_tuple=True)
            hidden, targets = out.last_hidden_state[rows, predicted_from[rows, places]], labels[rows, places]
        head = self.get_output_embeddings()
        logits = None
        if not return_logits and type(head) is nn.Linear and not any(p.requires_grad for p in head.parameters()):
            total = head_loss(hidden, head, targets, label_smoothing)
        else:
            logits = head(hidden)  # [supervised, V]
            total = nn.functional.cross_entropy(
                logits.float(), targets, reduction="sum", label_smoothing=label_smoothing
            )
        count = num_items_in_batch if num_items_in_batch is not None else max(len(targets), 1)
        return CausalLMOutputWithPast(
            loss=total / count, logits=logits, hidden_states=out.hidden_states, attentions=out.attentions
        )

    def _attention(self, segments: torch.Tensor, branches: torch.Tensor, positions: torch.Tensor) -> dict[str, Any]:
        """What the language model's attention is told of packed rows."""
        config = self.language_model.config
        window = getattr(config, "sliding_window", None)
        if window is not None and int(positions.max()) >= window:
            raise ValueError(f"a packed sample has {int(positions.max()) + 1} positions, the window {window}")
        implementation = config._attn_implementation
        dropped = self.training and getattr(config, "attention_dropout", 0.0)
        if implementation == SEGMENTS and not dropped:
            # A mask of ones keeps transformers from reading packs out of the positions.
            return {"attention_mask": torch.ones_like(segments), "packed": Packed(pieces(segments, branches))}
        mask = visible(segments, branches)  # [B, 1, T, T]
        if implementation == "eager":  # adds its mask
            mask = torch.zeros(mask.shape, dtype=self.dtype, device=mask.device).masked_fill(
                ~mask, torch.finfo(self.dtype).min
            )
        return {"attention_mask": mask}

    @torch.no_grad()
    def generate(self, input_ids: torch.LongTensor | None = None, **kwargs: Any):
        """`GenerationMixin.generate` over spliced embeddings, with the KV cache of the language model.

        Takes `input_ids` [B, T] (left padded, with `attention_mask`) and the media arguments of `forward`, which are
        encoded once; returns what transformers' own image-text-to-text models return: prompt and new tokens,
        [B, T + new]. From `inputs_embeds` alone it returns only new tokens, as theirs do. The cache is always used, and
        a placeholder is never a word of an answer.

        Raises:
            ValueError: as `forward`.
        """
        media = {name: kwargs.pop(name, None) for name in MEDIA}
        if input_ids is None:
            _refuse_media(media)
        else:
            if kwargs.get("inputs_embeds") is not None:
                raise ValueError("give either input_ids or inputs_embeds")
            if kwargs.get("attention_mask") is None:
                kwargs["attention_mask"] = torch.ones_like(input_ids)
            kwargs |= {"input_ids": input_ids, "inputs_embeds": self.embed(input_ids, media)}
        if holes := list(self.placeholders.values()):
            never = SuppressTokensLogitsProcessor(holes, device=str(self.device))
            kwargs["logits_processor"] = LogitsProcessorList([*(kwargs.get("logits_processor") or ()), never])
        return super().generate(**kwargs)  # pyright: ignore - the protocol it asks for names a property


def _refuse_media(media: dict[str, torch.Tensor | None]) -> None:
    for name, value in media.items():
        if value is not None:
            raise ValueError(f"{name}: a medium is spliced in where input_ids has placeholders; give input_ids")
