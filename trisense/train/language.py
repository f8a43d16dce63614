"""A stage that trains a tokenizer and a language model from nothing on plain text: `language`."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutput

from trisense.data.batches import Batch
from trisense.data.stream import TokenStream, Windows, pieces
from trisense.data.text import documents, fingerprint, text_files
from trisense.errors import BadInput
from trisense.model.build import train_tokenizer
from trisense.model.configuration import sub_config
from trisense.model.folders import whole_folder
from trisense.recipe import Design, Recipe
from trisense.stage import LanguageStage
from trisense.tokens import TextTokenizer
from trisense.train.checkpoints import CHECKPOINT, same_run
from trisense.train.loop import train
from trisense.train.processes import Parallel, join_processes
from trisense.train.report import Answer

MODEL = "model"
# The tokenizer learns from so many characters at most.
TOKENIZER_TEXT = 1 << 28
# Evaluation reads so many windows at most.
HELD_BACK = 512
# A sample shows how so many tokens of a held-back window go on for so many.
SHOWN, SAID = 16, 24
# Where the design does not say how many rows the embeddings have, as many as tokens and these, in multiples of ROWS:
# the spare ones can stand for pictures and sounds later.
SPARE, ROWS = 2, 64


def train_language(
    recipe: Recipe,
    name: str,
    data: Path,
    out: Path,
    *,
    device: str = "auto",
    seed: int = 0,
    parallel: Parallel = "ddp",
    tracker: str | None = None,
) -> Path:
    """Trains one stage of a recipe on plain text; the folder of the language model, `out/NAME/model`, as transformers
    writes it, with its tokenizer. A design can name it as `design.text.pretrained`.

    data: a file or a folder, as `trisense.data.text.text_files` takes it. device: `auto` or `cpu`. parallel, tracker:
    as `train` takes them. The same call goes on where one was stopped. Of several processes the main one makes the
    tokenizer and packs the text, so `out` has to be one folder for all. Raises BadInput for a stage that learns from
    something else, a design whose language model cannot begin from nothing, text that cannot be read or is too short, a
    folder that began with other text or another design, and whatever `train` refuses.
    """
    processes = join_processes(device)
    with processes.main_first():
        ready = get_ready(recipe, name, data, out, seed=seed)
    stage, windows, tokenizer = ready.stage, ready.windows, ready.tokenizer
    if processes.main:
        same_run(out / name / "run.json", ready.run, compared=())
    sizes = byte_lengths(tokenizer, ready.learner.language_model.config.vocab_size)
    train(
        ready.learner,
        ready.batch_at,
        stage,
        out / name,
        device=device,
        parallel=parallel,
        seed=seed,
        evaluate=lambda learner: held_back_loss(learner, windows, stage.batch_size, sizes),
        sample=lambda learner: _shown(learner, windows, tokenizer),
        tracker=tracker,
        about={"recipe": recipe.name, "data": str(data), "seed": str(seed)},
    )
    folder = out / name / MODEL
    if processes.main:
        save_language_model(ready.learner.language_model, tokenizer, folder)
    processes.wait()
    return folder


@dataclass(frozen=True)
class Ready:
    """A stage before its first step. run: what a run of it remembers."""

    learner: Language
    batch_at: Callable[[int], Batch]
    stage: LanguageStage
    windows: Windows
    tokenizer: TextTokenizer
    run: dict[str, Any]


def get_ready(recipe: Recipe, name: str, data: Path, out: Path, *, seed: int = 0) -> Ready:
    """Everything that `train_language` trains with, by the same arguments. The tokenizer and the packed tokens are
    written into `out/NAME` where they are not there yet. Raises BadInput as `train_language`."""
    stage = recipe.stages.get(name)
    if not isinstance(stage, LanguageStage):
        known = ", ".join(key for key, one in recipe.stages.items() if isinstance(one, LanguageStage)) or "none"
        raise BadInput(f"recipe {recipe.name} has no stage {name!r} that learns language; it has {known}")
    design, folder = recipe.design, out / name
    if "pretrained" in design.text:
        raise BadInput("design.text: is pretrained, and this stage trains one from nothing; give a model_type")
    files = text_files(data)
    run = {"data": fingerprint(files), "design": design.model_dump(mode="json")}
    if (folder / CHECKPOINT).exists():
        same_run(folder / "run.json", run, compared=run)
    tokenizer = _tokenizer(design, files, folder, run["data"], seed)
    end = _end(design, tokenizer)
    torch.manual_seed(seed)
    learner = Language(build_language_model(design, tokenizer, stage.block_size))
    what = {"data": run["data"], "tokenizer": sha256(tokenizer.to_json().encode()).hexdigest()}
    stream = TokenStream.open(folder, lambda: documents(files), tokenizer, end, what)
    windows = Windows.cut(stream, stage.block_size, stage.held_back)
    return Ready(learner, windows.batches(stage.batch_size, seed), stage, windows, tokenizer, run)


class Language(nn.Module):
    """A language model with the loss of its windows."""

    def __init__(self, language_model: Any) -> None:
        super().__init__()
        self.language_model = language_model

    def forward(
        self, input_ids: torch.Tensor, targets: torch.Tensor, num_items_in_batch: int | torch.Tensor | None = None
    ) -> CausalLMOutput:
        """input_ids, targets: int64 [N, W], the latter what follows each of the former. loss: summed over all targets
        and divided by num_items_in_batch, default their number. logits [N, W, V]."""
        logits = self.language_model(input_ids=input_ids, use_cache=False).logits
        total = nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")
        count = targets.numel() if num_items_in_batch is None else num_items_in_batch
        return CausalLMOutput(loss=total / count, logits=logits)


def build_language_model(design: Design, tokenizer: TextTokenizer, block_size: int) -> Any:
    """A design's language model with random weights (torch's generator: seed it first), with a row for every token.

    Raises BadInput for a `model_type` that is no language model, fewer rows than tokens, or windows that are longer
    than its positions.
    """
    size, end = tokenizer.size, _end(design, tokenizer)
    rows = design.text.get("vocab_size", -(-(size + SPARE) // ROWS) * ROWS)
    if rows < size:
        raise BadInput(
            f"design.text.vocab_size: {rows} rows, fewer than the tokenizer's {size} tokens; give more rows, or a "
            "lower design.vocabulary"
        )
    values = {**design.text, "vocab_size": rows, "bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    config = sub_config("design.text", values)
    positions = getattr(config, "max_position_embeddings", block_size)
    if block_size > positions:
        raise BadInput(f"block_size: {block_size}, but design.text.max_position_embeddings is {positions}")
    try:
        return AutoModelForCausalLM.from_config(config)
    except ValueError:
        raise BadInput(f"design.text: {design.text.get('model_type')!r} is no causal language model") from None


def _tokenizer(design: Design, files: list[Path], folder: Path, data: str, seed: int) -> TextTokenizer:
    """The tokenizer of these texts and this design, trained where the folder does not hold it yet."""
    what = [data, seed, design.vocabulary, design.layout.strings(), sorted(map(str, design.placeholders.values()))]
    file = folder / f"tokenizer-{sha256(json.dumps(what).encode()).hexdigest()[:12]}.json"
    if not file.exists():
        trained = train_tokenizer(_some(files, seed), design)
        folder.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(f".{os.getpid()}.part")
        aside.write_text(trained.to_json(), encoding="utf-8")
        os.replace(aside, file)
    return TextTokenizer.from_file(file)


def _some(files: list[Path], seed: int) -> Iterator[str]:
    """Text for the tokenizer, of files in an order drawn with `seed`."""
    drawn, left = list(files), TOKENIZER_TEXT
    random.Random(f"{seed}/tokenizer").shuffle(drawn)
    for document in documents(drawn):
        for piece in pieces(document):
            yield piece
            left -= len(piece)
            if left < 0:
                return


def _end(design: Design, tokenizer: TextTokenizer) -> int:
    """The token that closes a document, as it closes an answer later."""
    ids = tokenizer.control(design.layout.answer.after)
    if not ids or ids[-1] not in tokenizer.reserved:
        raise BadInput("design.layout.answer.after: empty; documents, as answers, need a token that ends them")
    return ids[-1]


def byte_lengths(tokenizer: TextTokenizer, rows: int) -> torch.Tensor:
    """float64 [rows]: the bytes of UTF-8 that each token of a byte-level tokenizer stands for; a control token's none.

    Such tokenizers spell every byte as one character.
    """
    lengths = [len(tokenizer.token(id) or "") if id not in tokenizer.reserved else 0 for id in range(rows)]
    return torch.tensor(lengths, dtype=torch.float64)


@torch.inference_mode()
def held_back_loss(learner: Language, windows: Windows, size: int, lengths: torch.Tensor) -> dict[str, float]:
    """Mean loss per token, its exponential, and bits per byte of text, which do not depend on the tokenizer, on windows
    held back (HELD_BACK at most)."""
    device = next(learner.parameters()).device
    total = bytes_ = 0.0
    count = 0
    for batch in windows.held_batches(size, HELD_BACK):
        total += float(learner(**batch.to(device).inputs, num_items_in_batch=1).loss)
        count += batch.items
        bytes_ += float(lengths[batch.inputs["targets"]].sum())
    loss = total / count
    bits = total / math.log(2) / bytes_ if bytes_ else math.inf
    return {"held_loss": loss, "perplexity": math.exp(min(loss, 700.0)), "bits_per_byte": bits}


def _shown(learner: Language, windows: Windows, tokenizer: TextTokenizer) -> list[Answer]:
    """How two held-back windows go on by the model, greedily, and by the truth."""
    device = next(learner.parameters()).device
    ids = next(windows.held_batches(2, 2)).inputs["input_ids"]
    shown = min(SHOWN, ids.shape[1] // 2)
    answers = []
    for row in ids:
        prompt = row[None, :shown].to(device)
        said = learner.language_model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=SAID, do_sample=False
        )
        begun, own, truth = (
            " ".join(tokenizer.decode(part.tolist()).split())
            for part in (row[:shown], said[0, shown:], row[shown : shown + SAID])
        )
        answers.append(Answer(begun, own, truth))
    return answers


def save_language_model(language_model: Any, tokenizer: TextTokenizer, folder: Path) -> None:
    """A folder of transformers: config, weights and tokenizer, for `AutoModelForCausalLM` and `AutoTokenizer`."""
    end = tokenizer.token(language_model.config.eos_token_id)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer.copy(), bos_token=end, eos_token=end, pad_token=end)
    with whole_folder(folder, marker="config.json") as aside:
        language_model.save_pretrained(aside)
        wrapped.save_pretrained(aside)
