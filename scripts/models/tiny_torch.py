"""Pipelines of diffusers and transformers in miniature, with weights of chance: what they make is noise, their shapes,
files and steps are those of the real ones. Needs torch; nothing is downloaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from scripts.models.recipes import write_json, write_readme

SEED: Final = 5
WORDS: Final = 544
"""Rows of the text encoders' tables: bytes, bytes that end a word, a few merges, marks."""
CLIP_TOKENS: Final = 77
CLAP_TOKENS: Final = 512
LOUDER: Final = 8.0
"""Factor on the weights of a vocoder that nobody trained, whose sound would round to silence in 16 bits."""


def make_diffusion(folder: Path, models: Path) -> None:
    """A Stable Diffusion pipeline for pictures of 64 x 64 and a multiple of 8: text to image, image to image."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(SEED)
    down, up = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    unet = UNet2DConditionModel(sample_size=32, in_channels=4, out_channels=4, block_out_channels=(32, 64),
                                layers_per_block=1, down_block_types=down, up_block_types=up,
                                cross_attention_dim=32, norm_num_groups=8, attention_head_dim=8)  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(32, 64), in_channels=3, out_channels=3, latent_channels=4,
                        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                        norm_num_groups=8, sample_size=64)  # fmt: skip
    text = CLIPTextModel(CLIPTextConfig(vocab_size=WORDS, hidden_size=32, intermediate_size=37, num_hidden_layers=2,
                                        num_attention_heads=4, max_position_embeddings=CLIP_TOKENS, bos_token_id=516,
                                        eos_token_id=517, pad_token_id=517))  # fmt: skip
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                              set_alpha_to_one=False, steps_offset=1)  # fmt: skip
    pipeline = StableDiffusionPipeline(vae=vae, text_encoder=text, tokenizer=_clip_tokenizer(), unet=unet,
                                       scheduler=scheduler, safety_checker=None, feature_extractor=None,
                                       requires_safety_checker=False)  # fmt: skip
    pipeline.save_pretrained(folder, safe_serialization=True)
    _describe(folder, "Stable Diffusion")


def make_audio_diffusion(folder: Path, models: Path) -> None:
    """An AudioLDM pipeline: text to 16 kHz sound through CLAP, a UNet, an autoencoder of spectra and a vocoder."""
    import torch
    from diffusers import AudioLDMPipeline, AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import ClapTextConfig, ClapTextModelWithProjection, SpeechT5HifiGan, SpeechT5HifiGanConfig

    torch.manual_seed(SEED)
    unet = UNet2DConditionModel(block_out_channels=(32, 64), layers_per_block=1, sample_size=32, in_channels=4,
                                out_channels=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=(32, 64),
                                class_embed_type="simple_projection", projection_class_embeddings_input_dim=32,
                                class_embeddings_concat=True, norm_num_groups=8, attention_head_dim=8)  # fmt: skip
    vae = AutoencoderKL(block_out_channels=[32, 64], in_channels=1, out_channels=1, latent_channels=4,
                        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
                        norm_num_groups=8, sample_size=32)  # fmt: skip
    text = ClapTextModelWithProjection(ClapTextConfig(
        vocab_size=WORDS, hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
        projection_dim=32, max_position_embeddings=514, pad_token_id=1, bos_token_id=0, eos_token_id=2))  # fmt: skip
    vocoder = SpeechT5HifiGan(SpeechT5HifiGanConfig(
        model_in_dim=8, sampling_rate=16000, upsample_initial_channel=16, upsample_rates=[2, 2],
        upsample_kernel_sizes=[4, 4], resblock_kernel_sizes=[3, 7], resblock_dilation_sizes=[[1, 3, 5], [1, 3, 5]],
        normalize_before=False))  # fmt: skip
    with torch.no_grad():
        for weights in vocoder.parameters():
            weights.mul_(LOUDER)
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                              set_alpha_to_one=False)  # fmt: skip
    pipeline = AudioLDMPipeline(vae=vae, text_encoder=text, tokenizer=_roberta_tokenizer(), unet=unet,
                                scheduler=scheduler, vocoder=vocoder)  # fmt: skip
    pipeline.save_pretrained(folder, safe_serialization=True)
    _describe(folder, "AudioLDM")


def _bytes_of_words() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary of bytes, bytes that end a word, and a few merges: any text has tokens, and none is unknown."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e</w>"), ("a", "n"), ("an", "d</w>")]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    return {word: number for number, word in enumerate(words)}, merges


def _clip_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    words, merges = _bytes_of_words()
    words |= {"<|startoftext|>": len(words), "<|endoftext|>": len(words) + 1}
    return CLIPTokenizer(vocab=words, merges=merges, model_max_length=CLIP_TOKENS)


def _roberta_tokenizer() -> Any:
    from transformers import RobertaTokenizer

    ends = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    words, merges = _bytes_of_words()
    numbered = {word: number for number, word in enumerate((*ends, *words))}
    return RobertaTokenizer(vocab=numbered, merges=merges, model_max_length=CLAP_TOKENS)


def _describe(folder: Path, what: str) -> None:
    """Beside what diffusers wrote: the mark, and no cache of anybody's machine."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    write_json(folder / "model_index.json", {key: value for key, value in index.items() if key != "_name_or_path"})
    write_json(folder / "config.json", {"synthetic": True, "architectures": [index["_class_name"]]})
    write_readme(folder, f"Tiny {what}", "apache-2.0", "Synthetic: made for tests by octonode, weights of chance.")
