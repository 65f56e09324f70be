"""One process of golden case g's four: computes its shard's losses and gradients and writes them down.

Run as a script with: folder of the case, rank, number of ranks, file to meet at, file to write to.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm2clip.train.core.losses import clip_loss, first_row, gather_with_grad, sharded_clip_loss, siglip_loss


def sharded_clip(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return sharded_clip_loss(image, text, logit_scale=scale)


def gathered_clip(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return clip_loss(gather_with_grad(image), gather_with_grad(text), logit_scale=scale)


def gathered_siglip(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    texts = gather_with_grad(text)
    return siglip_loss(image, texts, logit_scale=scale, logit_bias=bias, first_text=first_row(image))


def record(loss: Callable[..., Tensor], inputs: dict[str, Tensor], log_scale: str) -> dict[str, Tensor]:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    image = inputs["image_features"].chunk(ranks)[rank].clone().requires_grad_()
    text = inputs["text_features"].chunk(ranks)[rank].clone().requires_grad_()
    parameter = inputs[log_scale].clone().requires_grad_()
    value = loss(image, text, parameter.exp(), inputs["siglip_logit_bias"])
    value.backward()
    assert image.grad is not None
    assert text.grad is not None
    assert parameter.grad is not None
    return {
        "loss": value.detach(),
        "grad_image": image.grad,
        "grad_text": text.grad,
        "grad_logit_scale": parameter.grad,
    }


def main(folder: Path, rank: int, ranks: int, meeting: Path, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=ranks)
    inputs = load_file(folder / "inputs.safetensors")
    results = {
        "clip_4rank.local_gather_with_grad": record(sharded_clip, inputs, "logit_scale_param"),
        "clip_4rank.global_gather_with_grad": record(gathered_clip, inputs, "logit_scale_param"),
        "siglip_4rank.gather": record(gathered_siglip, inputs, "siglip_logit_scale_param"),
    }
    save_file(
        {f"{case}.{name}": value for case, record_ in results.items() for name, value in record_.items()}, out
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), Path(sys.argv[5]))
