"""Whole models in miniature, with random weights: the same classes as the real ones, saved as folders."""

from __future__ import annotations

import atexit
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from trisense.chat import Conversation, Layout, Markers
from trisense.preprocess import AudioProcessor, ImageProcessor
from trisense.prompt import Processor
from trisense.tokens import TextTokenizer

SPECIAL = ["<image>", "<audio>", "<|user|>", "<|assistant|>", "<|end|>"]
VOCABULARY = 256 + len(SPECIAL)
DESIGNS = ("spark", "clip-whisper")


def tokenizer(special: Sequence[str] = SPECIAL) -> TextTokenizer:
    """One token per byte, and the special tokens from 256 on."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(token, special=True) for token in special])
    return TextTokenizer(inner)


def processor(design: str = "spark") -> Processor:
    image = ImageProcessor(height=32, width=32, crop=False, tokens=16)
    return Processor(
        tokenizer=tokenizer(),
        layout=Layout(question=Markers("<|user|>", ""), answer=Markers("<|assistant|>", "<|end|>")),
        image=image,
        audio=AudioProcessor(chunk_seconds=None, frames_per_token=8)
        if design == "spark"
        else AudioProcessor(chunk_seconds=1.0, frames_per_token=2),
        placeholders={"image": 256, "audio": 257},
    )


def config(design: str = "spark"):
    """`spark`: ResNet, Parakeet, Llama with grouped heads and tied embeddings. `clip-whisper`: CLIP, Whisper, Llama."""
    from transformers import CLIPVisionConfig, LlamaConfig, ParakeetEncoderConfig, ResNetConfig, WhisperConfig

    from trisense.model import TrisenseConfig

    spark = design == "spark"
    text = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2 if spark else 4,
        vocab_size=VOCABULARY + 3,
        max_position_embeddings=512,
        tie_word_embeddings=spark,
        # Wide weights, so that the likeliest token is far from the next and changes with what is shown.
        initializer_range=0.3,
    )
    if spark:
        vision = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
        audio = ParakeetEncoderConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            subsampling_conv_channels=8,
            scale_input=False,
            initializer_range=0.1,
        )
        image_options = {"width": 16, "projector": "norm-mlp"}
        audio_options = {"width": 16, "projector": "residual", "time_first": True, "frames_per_token": 8}
    else:
        vision = CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        )
        audio = WhisperConfig(
            d_model=16,
            encoder_layers=2,
            encoder_attention_heads=2,
            encoder_ffn_dim=24,
            decoder_layers=1,
            decoder_attention_heads=2,
            decoder_ffn_dim=24,
            max_source_positions=50,
            vocab_size=300,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        )
        image_options = {"width": 16, "layer": -2, "select": "patches", "projector": "mlp"}
        audio_options = {"width": 16, "projector": "linear", "frames_per_token": 2}
    return TrisenseConfig(
        text_config=text,
        vision_config=vision,
        audio_config=audio,
        senses={"image": image_options, "audio": audio_options},
        placeholders={"image": 256, "audio": 257},
    )


def save(folder: Path, design: str = "spark") -> Path:
    """A model folder as training writes it."""
    import torch

    from trisense.model import TrisenseForConditionalGeneration

    torch.manual_seed(0)
    model = TrisenseForConditionalGeneration(config(design))
    model.save_pretrained(folder)
    processor(design).save(folder)
    return folder


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8)


def sound(seed: int, seconds: float = 0.7) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, int(16000 * seconds)).astype(np.float32)


def sound_file(path: Path, seed: int, seconds: float) -> str:
    """Writes `sound(seed, seconds)` as a wav file of 16 bits; its path."""
    import wave

    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((sound(seed, seconds) * 32767).astype("<i2").tobytes())
    return str(path)


@cache
def folder(design: str = "spark") -> Path:
    """A model folder, written once per test run. Copy it before you change it."""
    return save(scratch() / design, design)


@cache
def exported(design: str = "spark", weights: str = "float32") -> Path:
    """The ONNX parts of `folder(design)`, written once per test run. Copy it before you change it."""
    from trisense.model.export import export_onnx

    out = scratch() / f"{design}-{weights}"
    export_onnx(folder(design), out, weights)
    return out


@cache
def scratch() -> Path:
    path = Path(mkdtemp(prefix="trisense-tests-"))
    atexit.register(rmtree, path, ignore_errors=True)
    return path


def conversation() -> Conversation:
    """One question with two pictures, two sounds of different lengths and a text."""
    return Conversation.ask(
        "What is it?", images=[picture(0), picture(1)], audios=[sound(0), sound(1, 1.3)], texts=["a cup"]
    )


# The recipes over Phi-3.5; the others are over phi-2.
PHI3 = ("ft35", "eden")
PHI_SPECIAL = ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]


def pretrained(folder: Path) -> Path:
    """Folders `clip`, `phi` and `phi3` as the Hub has them, each a hundred thousand times smaller."""
    import torch
    from transformers import (
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
        Phi3Config,
        Phi3ForCausalLM,
        PhiConfig,
        PhiForCausalLM,
    )

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    vision = CLIPVisionConfig(image_size=32, patch_size=16, projection_dim=12, **small)
    CLIPVisionModelWithProjection(vision).save_pretrained(folder / "clip")
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    # Larger weights than usual, so that what is frozen answers differently to different projections.
    shape |= {"vocab_size": 270, "max_position_embeddings": 512, "initializer_range": 0.2}
    shape |= {"bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 256}
    PhiForCausalLM(PhiConfig(partial_rotary_factor=0.5, **shape)).save_pretrained(folder / "phi")
    Phi3ForCausalLM(Phi3Config(**shape)).save_pretrained(folder / "phi3")
    for name in ("phi", "phi3"):
        tokenizer(PHI_SPECIAL).copy().save(str(folder / name / "tokenizer.json"))
    return folder


def pretrained_overrides(recipe: str, parts: Path) -> list[str]:
    """What puts the folders of `pretrained` in place of a packaged recipe's parts."""
    width, tokens = (12, 1) if recipe in PHI3 else (16, 4)
    return [
        f"design.text.pretrained={parts / ('phi3' if recipe in PHI3 else 'phi')}",
        f"design.vision.pretrained={parts / 'clip'}",
        f"design.senses.image.width={width}",
        "design.placeholders.image=269",
        f"design.pictures={{height: 32, width: 32, tokens: {tokens}}}",
        "design.quantisation=null",
        "design.adapter.r=8",
    ]


WHISPER_LANGUAGES = ("en", "de", "fr")
WHISPER_SPECIAL = [
    *("<|endoftext|>", "<|startoftranscript|>"),
    *(f"<|{code}|>" for code in WHISPER_LANGUAGES),
    *("<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"),
]
# What Whisper never writes, because nobody says it: symbols, the first byte of notes, a dash or quote before a word.
UNSPOKEN = [*'"#()*+/:;<=>@[\\]^_`{|}~', "â", "Ġâ", "Ġ-", "Ġ'"]


def whisper_tokenizer() -> Tokenizer:
    """Whisper's tokens in Whisper's order, with a few words in place of its fifty thousand.

    The empty token before the special ones is how CTranslate2 knows a model of many languages.
    """
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġâ", "Ġ-", "Ġ'", *(f"Ġw{i}" for i in range(100)), ""]
    merges = [("Ġ", "â"), ("Ġ", "-"), ("Ġ", "'")]
    inner = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in WHISPER_SPECIAL])
    inner.add_tokens([AddedToken(f"<|{i * 0.02:.2f}|>", special=False, normalized=False) for i in range(1501)])
    return inner


@cache
def whisper() -> Path:
    """A folder of transformers' Whisper as the Hub has them, in miniature. Copy it before you change it."""
    import torch
    from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    out = scratch() / "whisper"
    out.mkdir()
    inner = whisper_tokenizer()
    inner.save(str(out / "tokenizer.json"))
    config = {"tokenizer_class": "WhisperTokenizer", "additional_special_tokens": WHISPER_SPECIAL}
    (out / "tokenizer_config.json").write_text(json.dumps(config))
    WhisperFeatureExtractor(feature_size=80).save_pretrained(out)
    ids = {token: inner.token_to_id(token) for token in WHISPER_SPECIAL}
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    special = {"pad_token_id": end, "bos_token_id": end, "eos_token_id": end, "decoder_start_token_id": start}
    never = ("transcribe", "translate", "startoftranscript", "startofprev", "startoflm", "nospeech")
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=inner.get_vocab_size(),
            d_model=16,
            encoder_layers=1,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=24,
            decoder_ffn_dim=24,
            init_std=0.5,
            **special,
        )
    )
    model.generation_config = GenerationConfig(
        max_length=448,
        is_multilingual=True,
        lang_to_id={f"<|{code}|>": ids[f"<|{code}|>"] for code in WHISPER_LANGUAGES},
        task_to_id={task: ids[f"<|{task}|>"] for task in ("translate", "transcribe")},
        no_timestamps_token_id=ids["<|notimestamps|>"],
        max_initial_timestamp_index=50,
        return_timestamps=False,
        suppress_tokens=[*map(inner.token_to_id, UNSPOKEN), *(ids[f"<|{token}|>"] for token in never)],
        begin_suppress_tokens=[inner.token_to_id("Ġ"), end],
        **special,
    )
    model.save_pretrained(out)
    return out


@cache
def converted_whisper() -> Path:
    """`whisper()` as CTranslate2 converts it, in float32. Copy it before you change it."""
    from ctranslate2.converters import TransformersConverter

    out = scratch() / "whisper-ctranslate2"
    TransformersConverter(str(whisper()), copy_files=["tokenizer.json", "preprocessor_config.json"]).convert(str(out))
    return out


@cache
def parts() -> Path:
    """The folders of `pretrained`, written once per test run, in 16 bits as phi-2 and Phi-3.5 are published."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = pretrained(scratch() / "parts")
    for name, dtype in (("phi", torch.float16), ("phi3", torch.bfloat16)):
        AutoModelForCausalLM.from_pretrained(folder / name, dtype=dtype).save_pretrained(folder / name)
    return folder


@cache
def trained(name: str, *overrides: str, stage: str = "instruct") -> Path:
    """Trained parts of a packaged recipe over `parts()`, with projectors and an adapter that are not what they began
    as. Written once per test run; copy them before you change them."""
    import torch

    from trisense.model.pretrained import add_adapter, load_design
    from trisense.model.trained import save_trained
    from trisense.recipe import read

    recipe = read(name, [*pretrained_overrides(name, parts()), *overrides])
    model, _ = load_design(recipe.design)
    add_adapter(model, recipe.design)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    folder = Path(mkdtemp(prefix=f"{name}-", dir=scratch())) / "trained"
    save_trained(model, recipe, stage, folder)
    return folder
