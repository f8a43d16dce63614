"""A model that learns in a stage on files: its loss, and what of it is kept."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from trisense.model.modeling import TrisenseForConditionalGeneration
from trisense.model.senses import Sense
from trisense.stage import FileStage, ScheduledSampling


def learning(model: TrisenseForConditionalGeneration, stage: FileStage) -> None:
    """Says of every parameter but the encoders' whether it learns in a stage; an adapter has to be there already."""
    for key, parameter in model.language_model.named_parameters():
        parameter.requires_grad_(stage.learns == "instruct" and ".lora_" in key)
    for sense in model.senses.values():
        cast(Sense, sense).projector.requires_grad_(not stage.freeze_projector)


class Learner(nn.Module):
    """A model with the loss of one stage. Its state is what learns: frozen parts are not written again and again."""

    def __init__(
        self,
        model: TrisenseForConditionalGeneration,
        label_smoothing: float = 0.0,
        sampling: ScheduledSampling | None = None,
    ):
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing
        self.sampling = sampling

    def forward(self, own_words: torch.Tensor | None = None, **inputs: Any) -> CausalLMOutputWithPast:
        """Inputs and output of the model's own forward, but no logits. own_words: bool, whether scheduled sampling has
        begun."""
        if self.sampling and own_words is not None and bool(own_words):
            inputs["input_ids"] = self._with_own_words(inputs, self.sampling.first)
        return self.model(**inputs, label_smoothing=self.label_smoothing, return_logits=False)

    @torch.no_grad()
    def _with_own_words(self, inputs: dict[str, Any], first: int) -> torch.Tensor:
        """input_ids [B, T] with what the model says in place of an answer's tokens, the `first` aside.

        One teacher-forced pass says what it finds likeliest at every place (Mihaylova & Martins 2019,
        arXiv:1906.07651), where the published code ran one pass per token.
        """
        ids = inputs["input_ids"].clone()
        target = inputs["labels"] != -100  # [B, T]
        target[:, 0] = False
        logits = self.model(**inputs).logits  # [supervised, V]
        logits[:, list(self.model.placeholders.values())] = -torch.inf
        places = torch.arange(ids.shape[1], device=ids.device)
        goes_on = target & target.roll(1, 1)  # from a target before it, which in a fan is not that of another branch
        if "predicted_from" in inputs:
            goes_on &= inputs["predicted_from"] == places - 1
        # Targets of the answers before this one.
        before = torch.where(target & ~goes_on, target.cumsum(1) - 1, 0).cummax(1).values
        own = target & (target.cumsum(1) - before > first)
        ids[own] = logits.argmax(-1)[own[target]]
        return ids

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        whole = super().state_dict(*args, **kwargs)
        learning = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name: value for name, value in whole.items() if name in learning}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        if strict and set(state_dict) != set(self.state_dict()):
            raise RuntimeError("other parameters learned")
        return super().load_state_dict(state_dict, strict=False, assign=assign)
