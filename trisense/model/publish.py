"""A model folder on the Hugging Face Hub, with a card that says what it was made of and what it learned from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from huggingface_hub import HfApi, get_token

from trisense.engines import HUB_ID
from trisense.errors import BadInput
from trisense.model.trained import RECIPE_FILE, read_recipe
from trisense.recipe import Recipe
from trisense.stage import FileStage

CARD = "README.md"
# Stands in a card for the repository until that is known.
REPOSITORY = "OWNER/NAME"
Form = Literal["parts", "merged", "llava", "onnx"]

# What each form is, the library that opens it, its relation to the base models in the Hub's words, and how to use it.
FORMS: dict[Form, tuple[str, str, str, str]] = {
    "parts": (
        "The trained parts alone; the pretrained ones are loaded from where they were published.",
        "trisense",
        "adapter",
        'trisense ask --model OWNER/NAME --image photo.jpg "What is in the picture?"',
    ),
    "merged": (
        "The whole model; its adapter, where it has one, is part of the language model's weights.",
        "trisense",
        "finetune",
        'trisense ask --model OWNER/NAME --image photo.jpg "What is in the picture?"',
    ),
    "llava": (
        "The whole model in the form of LLaVA, which transformers opens by itself: `LlavaForConditionalGeneration`, "
        "`LlavaProcessor`. Typed text is not kept from becoming a special token there.",
        "transformers",
        "finetune",
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n\n"
        'model = AutoModelForImageTextToText.from_pretrained("OWNER/NAME")\n'
        'processor = AutoProcessor.from_pretrained("OWNER/NAME")',
    ),
    "onnx": (
        "The whole model as parts for ONNX Runtime, which answer on a CPU without torch.",
        "trisense",
        "quantized",
        "hf download OWNER/NAME --local-dir model\n"
        'trisense ask --model model --image photo.jpg "What is in the picture?"',
    ),
}


def model_card(recipe: Recipe, stage: str, form: Form) -> str:
    """The text of a README.md for a model of `recipe` after `stage`, which begins with what the Hub reads in YAML.

    A part that was loaded from a folder is called by the folder's name and is no `base_model`.
    """
    what, library, relation, usage = FORMS[form]
    design = recipe.design
    sources = {"text": str(design.text["pretrained"]), "vision": str((design.vision or {})["pretrained"])}
    bases = [name for name in sources.values() if _of_hub(name)]
    names = {part: name if _of_hub(name) else Path(name).name for part, name in sources.items()}
    head: dict[str, Any] = {"library_name": library, "pipeline_tag": "image-text-to-text", "tags": ["trisense"]}
    if bases:
        head |= {"base_model": bases, "base_model_relation": relation}
    sight = design.senses["image"]
    tokens = design.pictures.tokens if design.pictures else 0
    rows = [
        ("picture encoder", f"{names['vision']}, frozen: {tokens} x {sight['width']} a picture"),
        ("projector", f"{sight.get('projector', 'mlp')}, trained"),
        ("language model", f"{names['text']}, frozen" + (", in 4 bits while training" if design.quantisation else "")),
    ]
    learned = list(recipe.stages)[: list(recipe.stages).index(stage) + 1]
    stages = [(name, one) for name in learned if isinstance(one := recipe.stages[name], FileStage)]
    if design.adapter and any(one.learns == "instruct" for _, one in stages):
        adapter = design.adapter
        targets = ", ".join(adapter.targets)
        rows.append(("adapter", f"LoRA of rank {adapter.r}, alpha {adapter.alpha}, on {targets}, trained"))
    lines = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {recipe.name}",
        recipe.description,
        what,
        "\n".join(["| part | |", "|---|---|", *(f"| {part} | {text} |" for part, text in rows)]),
        "## What it learned from",
        "\n".join(
            f"- `{name}`: {one.learned_from}; the recipe says {one.steps:,} steps of "
            f"{one.batch_size * one.accumulate} samples, learning rate {one.lr:g}"
            for name, one in stages
        ),
        "## Use",
        f"```{'python' if form == 'llava' else 'sh'}\n{usage}\n```",
        "Nobody has measured its answers for this card. The licences of the parts it is made of apply to it too.",
    ]
    return "\n\n".join(line for line in lines if line) + "\n"


def write_card(folder: Path, source: Path, form: Form) -> None:
    """Puts a card into `folder` for what was made of `source`, where that holds trained parts and so a recipe."""
    if (source / RECIPE_FILE).is_file():
        (folder / CARD).write_text(model_card(*read_recipe(source), form), encoding="utf-8")


def push(folder: Path, repo: str, private: bool = False) -> str:
    """Uploads a model folder to the repository `repo` of the Hub, made if need be; its address.

    Trained parts without a README.md get one first, in the folder, so that what is published can be read before.

    Raises BadInput for a folder that is no model, one without a card, trained parts that stand on a folder of this
    machine, an id that is none, no token, and whatever the Hub refuses.
    """
    if not any((folder / name).is_file() for name in (RECIPE_FILE, "config.json")):
        raise BadInput(f"{folder}: not a model folder; expected {RECIPE_FILE} (trained parts) or config.json")
    if not HUB_ID.fullmatch(repo):
        raise BadInput(f"{repo!r}: not the id of a repository; expected one such as owner/model")
    if get_token() is None:
        raise BadInput("no token of the Hub: log in with `hf auth login`, or set HF_TOKEN")
    if (folder / RECIPE_FILE).is_file():
        recipe, _ = read_recipe(folder)
        for part in ("text", "vision"):
            name = str((getattr(recipe.design, part) or {}).get("pretrained"))
            if not _of_hub(name):
                raise BadInput(
                    f"{folder}: design.{part}.pretrained is {name}, a folder of this machine, which nobody else has; "
                    "push a merged model"
                )
        if not (folder / CARD).is_file():
            write_card(folder, folder, "parts")
    if not (folder / CARD).is_file():
        raise BadInput(f"{folder / CARD}: no such file; write what the model is and learned from, then push again")
    card = (folder / CARD).read_text(encoding="utf-8")
    (folder / CARD).write_text(card.replace(REPOSITORY, repo), encoding="utf-8")
    api = HfApi()
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message="Upload of a model", ignore_patterns=[".*", "*/.*"]
        )
    except (OSError, ValueError) as error:  # what the Hub answers is an OSError, an id it does not take a ValueError
        raise BadInput(f"{repo}: the Hub refused ({str(error).strip().splitlines()[0][:150]})") from None
    return str(address)


def _of_hub(name: str) -> bool:
    return bool(HUB_ID.fullmatch(name)) and not Path(name).is_dir()
