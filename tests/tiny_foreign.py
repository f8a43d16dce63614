"""Folders of other people's models in miniature, with random weights: the classes, files and chat templates of
transformers, as on the Hub. Each is written once per test run; copy it before you change it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import tiny_models
from transformers import PreTrainedTokenizerFast

SPECIAL = [
    *("<|im_start|>", "<|im_end|>", "<s>", "<image>", "<end_of_utterance>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    *("<fake_token_around_image>", "<global-img>", *(f"<row_{row}_col_{col}>" for row in (1, 2) for col in (1, 2))),
    *("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"),
]
ID = {token: 256 + i for i, token in enumerate(SPECIAL)}
VOCABULARY = 256 + len(SPECIAL) + 2
# Wide weights, so that the likeliest token is far from the next and changes with what is shown.
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,
    "bos_token_id": ID["<s>"],
    "eos_token_id": ID["<|im_end|>"],
    "pad_token_id": ID["<|im_end|>"],
}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"initializer_range": 0.3}
QWEN_EYES = {"depth": 2, "num_heads": 2, "patch_size": 4, "initializer_range": 0.3}
EARS = {
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "num_mel_bins": 16,
    "max_source_positions": 50,
    "initializer_range": 0.3,
}
MROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}}
# What a tokenizer of Qwen's omni models says its special tokens are for.
NAMED = {
    "image_token": "<|image_pad|>",
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
    "audio_token": "<|AUDIO|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
    "video_token": "<|video_pad|>",
}

LLAVA = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMOLVLM = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def tokenizer(template: str | None = None, **options: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tiny_models.tokenizer(SPECIAL).copy(),
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        chat_template=template,
        **options,
    )


def llava(folder: Path) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer(),
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA,
    ).save_pretrained(folder)
    vision = CLIPVisionConfig(image_size=32, patch_size=16, **VISION)
    config = LlavaConfig(vision_config=vision, text_config=LlamaConfig(**TEXT), image_token_index=ID["<image>"])
    return LlavaForConditionalGeneration(config)


def qwen2_vl(folder: Path) -> Any:
    """Its processor also has a class for videos, which needs torchvision: so the files are written one by one."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    pictures = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, size={"shortest_edge": 256, "longest_edge": 1024})
    save_parts(folder, "Qwen2VL", CHATML, pictures)
    config = Qwen2VLConfig(
        vision_config={"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2} | QWEN_EYES,
        text_config=TEXT | MROPE,
        image_token_id=ID["<|image_pad|>"],
        video_token_id=ID["<|video_pad|>"],
        vision_start_token_id=ID["<|vision_start|>"],
        vision_end_token_id=ID["<|vision_end|>"],
    )
    return Qwen2VLForConditionalGeneration(config)


def smolvlm(folder: Path) -> Any:
    from transformers import LlamaConfig, SmolVLMConfig, SmolVLMForConditionalGeneration
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    pictures = SmolVLMImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    save_parts(folder, "SmolVLM", SMOLVLM, pictures, image_seq_len=4)
    config = SmolVLMConfig(
        vision_config=VISION | {"image_size": 16, "patch_size": 4},
        text_config=LlamaConfig(**TEXT),
        scale_factor=2,
        image_token_id=ID["<image>"],
        pad_token_id=TEXT["pad_token_id"],
    )
    return SmolVLMForConditionalGeneration(config)


def qwen2_audio(folder: Path) -> Any:
    from transformers import (
        Qwen2AudioConfig,
        Qwen2AudioForConditionalGeneration,
        Qwen2AudioProcessor,
        WhisperFeatureExtractor,
    )

    ears = WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    Qwen2AudioProcessor(ears, tokenizer(), chat_template=CHATML).save_pretrained(folder)
    config = Qwen2AudioConfig(
        audio_config={"model_type": "qwen2_audio_encoder", **EARS},
        text_config={"model_type": "qwen2", **TEXT},
        audio_token_index=ID["<|AUDIO|>"],
    )
    return Qwen2AudioForConditionalGeneration(config)


def qwen2_5_omni(folder: Path) -> Any:
    """Reads pictures and sounds, writes and speaks; here without what speaks."""
    from transformers import Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration, WhisperFeatureExtractor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    ears = WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    pictures = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, size={"shortest_edge": 256, "longest_edge": 1024})
    save_parts(folder, "Qwen2_5Omni", CHATML, pictures, ears, named=NAMED)
    eyes = {"hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32, "window_size": 16} | QWEN_EYES
    config = Qwen2_5OmniConfig(
        thinker_config={
            "audio_config": {**EARS, "n_window": 25, "output_dim": 32},
            "vision_config": eyes | {"fullatt_block_indexes": [1]},
            "text_config": TEXT | MROPE,
            "image_token_index": ID["<|image_pad|>"],
            "video_token_index": ID["<|video_pad|>"],
            "audio_token_index": ID["<|AUDIO|>"],
            "vision_start_token_id": ID["<|vision_start|>"],
            "audio_start_token_id": ID["<|audio_bos|>"],
            "audio_end_token_id": ID["<|audio_eos|>"],
        },
        enable_audio_output=False,
    )
    return Qwen2_5OmniForConditionalGeneration(config)


def llama(folder: Path) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer(CHATML).save_pretrained(folder)
    return LlamaForCausalLM(LlamaConfig(**TEXT))


def save_parts(
    folder: Path,
    kind: str,
    template: str,
    pictures: Any,
    *others: Any,
    named: dict[str, str] | None = None,
    **options: Any,
) -> None:
    """The files of a processor as folders of the Hub have them, all but the part that reads videos."""
    tokenizer(extra_special_tokens=named or {}).save_pretrained(folder)
    values: dict[str, Any] = {}
    for part in (*others, pictures):
        values |= json.loads(part.to_json_string())
    # The class has been called so since before there was one for Pillow and one for torchvision.
    values["image_processor_type"] = type(pictures).__name__.removesuffix("Pil")
    name = {"processor_class": f"{kind}Processor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(values | name))
    (folder / "processor_config.json").write_text(json.dumps(name | options))
    (folder / "chat_template.jinja").write_text(template)


MAKERS = {maker.__name__: maker for maker in (llava, qwen2_vl, smolvlm, qwen2_audio, qwen2_5_omni, llama)}
SEEING = ("llava", "qwen2_vl", "smolvlm")


@cache
def folder(name: str) -> Path:
    """The whole folder of the model `name`, one of MAKERS."""
    import torch

    torch.manual_seed(0)
    path = tiny_models.scratch() / name
    path.mkdir()
    MAKERS[name](path).save_pretrained(path)
    return path
