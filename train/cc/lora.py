"""Which parameters of a text model are trained: low-rank updates (LoRA, by peft), the last blocks, or all."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from llm2clip.encoders.layers.transformers_modules import import_quietly
from llm2clip.train.cc.config import LoraSettings, TuneSettings


def linear_names(model: nn.Module, *, targets: tuple[str, ...] = ()) -> list[str]:
    """Names of the linear layers in a text model's blocks; with ``targets`` those whose last names are among them.

    In a Llama these are seven a block (q, k, v, o, gate, up and down), in a BERT six. ``ValueError`` for a target that
    the model does not have.
    """
    found = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    last = {name.rpartition(".")[2] for name in found}
    if wrong := [target for target in targets if target not in last]:
        raise ValueError(f"no linear layer is called {wrong[0]!r}; this model has {', '.join(sorted(last))}")
    return [name for name in found if not targets or name.rpartition(".")[2] in targets]


def choose_trained(model: nn.Module, settings: TuneSettings, *, seed: int) -> None:
    """Mark what is trained, in place: it gets gradients and is float32; with LoRA updates are put into the model."""
    model.requires_grad_(False)
    if settings.parts == "all":
        model.requires_grad_(True)
    elif settings.parts == "last":
        layers = list(model.layers)  # type: ignore[arg-type]
        if settings.last_layers > len(layers):
            raise ValueError(f"last_layers is {settings.last_layers}, but the model has {len(layers)} blocks")
        for module in (*layers[-settings.last_layers :], *_final_norm(model)):
            module.requires_grad_(True)
    else:
        _add_lora(model, settings.lora, seed=seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def merge_lora(model: nn.Module) -> None:
    """Add the updates to the weights that they are for and take them out of the model, in place."""
    if hasattr(model, "peft_config"):
        from peft.tuners.lora import LoraLayer

        for name, module in list(model.named_modules()):
            if isinstance(module, LoraLayer):
                module.merge()
                owner, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(owner), leaf, module.get_base_layer())
        del model.peft_config  # or peft believes that the next updates are added to these
    model.requires_grad_(False).eval()


def optimiser_groups(model: nn.Module, settings: TuneSettings) -> list[dict[str, Any]]:
    """Groups for the optimiser; vectors and embeddings have no weight decay."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    plain = [p for p in trained if p.ndim < 2 or id(p) in embeddings]
    decayed = [p for p in trained if p.ndim >= 2 and id(p) not in embeddings]
    groups = [(decayed, settings.weight_decay), (plain, 0.0)]
    return [
        {"params": members, "lr": settings.lr, "weight_decay": decay} for members, decay in groups if members
    ]


def _add_lora(model: nn.Module, settings: LoraSettings, *, seed: int) -> None:
    import_quietly()
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=linear_names(model, targets=settings.targets),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)


def _final_norm(model: nn.Module) -> list[nn.Module]:
    norm = getattr(model, "norm", None)
    return [norm] if isinstance(norm, nn.Module) else []
