"""Random encoders of families that were not published through transformers: Long-CLIP, EVA02, LLM2CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_WIDTH, _HEADS, _LAYERS, _DIM = 64, 1, 2, 48
_IMAGE, _PATCH, _POSITIONS = 64, 16, 77
_LONG_POSITIONS = 248
_SPREAD = 0.1
_LANGUAGE_WIDTH = 96


def long_clip(folder: Path, vocabulary: int) -> None:
    """Both towers in OpenAI's layout, with Long-CLIP's second table of positions."""
    import torch

    tensors = _text_tower(vocabulary, positions=_LONG_POSITIONS)
    tensors["positional_embedding_res"] = _noise(_LONG_POSITIONS, _WIDTH)
    visual = {
        "class_embedding": _noise(_WIDTH),
        "positional_embedding": _noise((_IMAGE // _PATCH) ** 2 + 1, _WIDTH),
        "conv1.weight": _noise(_WIDTH, 3, _PATCH, _PATCH),
        "proj": _noise(_WIDTH, _DIM),
        **_norms("ln_pre", "ln_post"),
        **_blocks(),
    }
    tensors |= {f"visual.{name}": tensor for name, tensor in visual.items()}
    tensors["logit_scale"] = torch.tensor(4.6)
    torch.save(tensors, folder / "longclip-B.pt")


def eva02_clip(folder: Path, vocabulary: int) -> None:
    """EVA02's vision tower, and a text tower in OpenAI's layout."""
    import torch

    from llm2clip.encoders.layers.eva02 import Eva02Config, Eva02Tower

    shape = Eva02Config(
        image_size=_IMAGE, patch_size=_PATCH, width=_WIDTH, depth=_LAYERS, heads=_HEADS, hidden=96, dim=_DIM
    )
    tower = Eva02Tower(shape)
    tensors = {f"visual.{name}": tensor for name, tensor in tower.state_dict().items()}
    tensors |= {f"text.{name}": tensor for name, tensor in _text_tower(vocabulary).items()}
    tensors["logit_scale"] = torch.tensor(4.6)
    torch.save(tensors, folder / "EVA02_CLIP_B_psz16_s8B.pt")


def llm2clip(folder: Path, vocabulary: int) -> None:
    """LLM2CLIP as Microsoft published it: OpenAI's tower with an adapter, and a Llama; saved as one folder."""
    import shutil

    from safetensors.torch import save_file
    from torch import nn
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, LlamaConfig, LlamaForCausalLM

    from llm2clip.encoders import load_encoder, save_encoder
    from llm2clip.encoders.layers.text_adapter import TextAdapter

    language = folder / "llama"
    language.mkdir(exist_ok=True)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=_LANGUAGE_WIDTH,
        intermediate_size=128,
        num_hidden_layers=_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(language)
    shutil.move(folder / "tokenizer.json", language / "tokenizer.json")
    tower = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=_WIDTH,
            intermediate_size=128,
            num_hidden_layers=_LAYERS,
            num_attention_heads=_HEADS,
            image_size=_IMAGE,
            patch_size=_PATCH,
            projection_dim=_DIM,
        )
    )
    for parameter in tower.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=_SPREAD)
    adapter = TextAdapter(_LANGUAGE_WIDTH, _DIM, blocks=2)
    tensors = dict(tower.state_dict())
    tensors |= {
        f"text_adapter.adaptor.{name.removeprefix('adaptor.')}": tensor
        for name, tensor in adapter.state_dict().items()
    }
    source = folder / "published"
    source.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, source / "model.safetensors")
    encoder = load_encoder(source, language_model=language)
    save_encoder(encoder, folder / "saved")
    for part in (source, language):
        shutil.rmtree(part)
    for part in (folder / "saved").iterdir():
        shutil.move(part, folder / part.name)
    (folder / "saved").rmdir()


def _text_tower(vocabulary: int, *, positions: int = _POSITIONS) -> dict[str, Tensor]:
    return {
        "token_embedding.weight": _noise(vocabulary, _WIDTH),
        "positional_embedding": _noise(positions, _WIDTH),
        "text_projection": _noise(_WIDTH, _DIM),
        **_norms("ln_final"),
        **_blocks(),
    }


def _blocks() -> dict[str, Tensor]:
    shapes = {
        "attn.in_proj_weight": (3 * _WIDTH, _WIDTH),
        "attn.in_proj_bias": (3 * _WIDTH,),
        "attn.out_proj.weight": (_WIDTH, _WIDTH),
        "attn.out_proj.bias": (_WIDTH,),
        "mlp.c_fc.weight": (4 * _WIDTH, _WIDTH),
        "mlp.c_fc.bias": (4 * _WIDTH,),
        "mlp.c_proj.weight": (_WIDTH, 4 * _WIDTH),
        "mlp.c_proj.bias": (_WIDTH,),
    }
    tensors: dict[str, Tensor] = {}
    for number in range(_LAYERS):
        block = f"transformer.resblocks.{number}."
        tensors |= {block + name: _noise(*shape) for name, shape in shapes.items()}
        tensors |= {block + name: tensor for name, tensor in _norms("ln_1", "ln_2").items()}
    return tensors


def _norms(*names: str) -> dict[str, Tensor]:
    import torch

    ones = {f"{name}.weight": torch.ones(_WIDTH) for name in names}
    return ones | {f"{name}.bias": torch.zeros(_WIDTH) for name in names}


def _noise(*shape: int) -> Tensor:
    import torch

    return torch.randn(shape) * _SPREAD
