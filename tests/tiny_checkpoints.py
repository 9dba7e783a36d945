"""Checkpoints of real architectures with random weights, small enough to be made by the test that needs one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

DIMENSIONS = 12
_WORDS = (
    *("<pad>", "<eos>", "<bos>", "<unk>", "<image>", "Question", "Query", ":", "Describe", "the", "image", ".", "\n"),
    *("what", "wing", "lift", "drag", "and", "user"),
)
_SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_QWEN = ("<|image_pad|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|endoftext|>")
_TILES = (
    *("<fake_token_around_image>", "<end_of_utterance>", "<global-img>", "<image>"),
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)


def colpali(folder: Path) -> None:
    """ColPali on PaliGemma: images of 56 x 56 pixels as 4 x 4 patches."""
    torch.manual_seed(0)
    images = transformers.SiglipImageProcessor(size={"height": 56, "width": 56})
    images.image_seq_length = 16
    processor = transformers.ColPaliProcessor(image_processor=images, tokenizer=_tokenizer())
    vision = {"model_type": "siglip_vision_model", **_SMALL, "image_size": 56, "patch_size": 14, "projection_dim": 16}
    text = {"model_type": "gemma", **_SMALL, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0}
    whole = {
        "model_type": "paligemma",
        "vision_config": vision,
        "text_config": {**text, "vocab_size": len(processor.tokenizer)},
        "image_token_index": processor.image_token_id,
        "image_token_id": processor.image_token_id,
        "projection_dim": 16,
        "hidden_size": 16,
    }
    config = transformers.ColPaliConfig(vlm_config=whole, embedding_dim=DIMENSIONS)
    _save(folder, transformers.ColPaliForRetrieval(config), processor)


def colqwen2(folder: Path, inside: str = "qwen2_vl") -> None:
    """ColQwen2, or with ``inside`` qwen2_5_vl ColQwen2.5: patches of 28 pixels, at most 24 of them."""
    torch.manual_seed(0)
    images = transformers.Qwen2VLImageProcessor(min_pixels=4 * 28 * 28, max_pixels=24 * 28 * 28)
    processor = transformers.ColQwen2Processor(image_processor=images, tokenizer=_tokenizer(_QWEN))
    ids = processor.tokenizer.convert_tokens_to_ids
    rope = {"type": "mrope", "rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    text = {**_SMALL, "num_key_value_heads": 1, "rope_parameters": rope, "vocab_size": len(processor.tokenizer)}
    vision: dict[str, Any] = {"depth": 2, "hidden_size": 16, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2}
    if inside == "qwen2_vl":
        vision |= {"embed_dim": 16, "mlp_ratio": 2}
    else:
        vision |= {"out_hidden_size": 16, "intermediate_size": 32, "fullatt_block_indexes": [1], "window_size": 56}
    whole = {
        "model_type": inside,
        "vision_config": vision,
        "text_config": {**text, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1},
        "image_token_id": processor.image_token_id,
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
    }
    config = transformers.ColQwen2Config(vlm_config=whole, embedding_dim=DIMENSIONS)
    _save(folder, transformers.ColQwen2ForRetrieval(config), processor)


def colmodernvbert(folder: Path) -> None:
    """ColModernVBERT: tiles of 56 x 56 pixels as 2 x 2 patches each, of images of at most 112 pixels a side."""
    torch.manual_seed(0)
    images = transformers.Idefics3ImageProcessor(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    tokenizer = _tokenizer(_TILES, cls_token="<bos>", sep_token="<eos>")
    processor = transformers.ColModernVBertProcessor(image_processor=images, tokenizer=tokenizer, image_seq_len=4)
    special = {"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 1, "sep_token_id": 1}
    whole = {
        "model_type": "modernvbert",
        "vision_config": {**_SMALL, "image_size": 56, "patch_size": 14},
        "text_config": {**_SMALL, **special, "vocab_size": len(tokenizer), "global_attn_every_n_layers": 1},
        "pixel_shuffle_factor": 2,
        "image_token_id": processor.image_token_id,
    }
    config = transformers.ColModernVBertConfig(vlm_config=whole, embedding_dim=DIMENSIONS)
    _save(folder, transformers.ColModernVBertForRetrieval(config), processor)


def bert(folder: Path) -> None:
    """A BERT of 2 layers over the words of the alphabet."""
    torch.manual_seed(0)
    tokenizer = _tokenizer(tuple("abcdefghijklmnopqrstuvwxyz"), cls_token="<bos>", sep_token="<eos>", surround=True)
    config = transformers.BertConfig(**_SMALL, vocab_size=len(tokenizer), max_position_embeddings=40)
    _save(folder, transformers.BertModel(config), tokenizer)


def _tokenizer(extra: tuple[str, ...] = (), surround: bool = False, **names: str) -> Any:
    words = dict.fromkeys((*_WORDS, *extra))
    backend = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase() if surround else None
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if surround:
        around = processors.TemplateProcessing("<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)])
        backend.post_processor = around
    special = [word for word in extra if word.startswith("<")]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        additional_special_tokens=special,
        **names,
    )


def _save(folder: Path, *parts: Any) -> None:
    for part in parts:
        part.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\nRandom weights.\n")
