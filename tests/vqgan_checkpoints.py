"""Small random checkpoints in the layouts of other programs, and a plain forward pass over their tensors.

A network is a list of steps, each with the name its tensors have in the layout. Written from the papers and the names
alone; shares no code with the package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

from tokenshard.tokenizers.checkpoints.load import import_checkpoint
from tokenshard.tokenizers.conv import ConvVQ

State = dict[str, Tensor]


class Step(NamedTuple):
    """One operation: `conv`, `block`, `attention`, `halve`, `mean`, `double` or `norm`."""

    kind: str
    name: str = ""
    inputs: int = 0
    outputs: int = 0
    side: int = 3
    bias: bool = True


@dataclass(frozen=True)
class Checkpoint:
    """Steps of encoder and decoder and the tensors they need; 1x1 convolutions to and from the codes included."""

    encoder: list[Step]
    decoder: list[Step]
    state: State
    of_output: bool = False
    """whether blocks that change their width add a convolution of their output"""

    def encode(self, pixels: Tensor) -> Tensor:
        return self._run(self.encoder, pixels)

    def decode(self, vectors: Tensor) -> Tensor:
        return self._run(self.decoder, vectors)

    @property
    def codebook(self) -> Tensor:
        return self.state["quantize.embedding.weight"]

    def _run(self, steps: Sequence[Step], x: Tensor) -> Tensor:
        for step in steps:
            x = getattr(self, f"_{step.kind}")(step.name, x)
        return x

    def _conv(self, name: str, x: Tensor, stride: int = 1, padding: int | None = None) -> Tensor:
        weight = self.state[f"{name}.weight"]
        padding = weight.shape[2] // 2 if padding is None else padding
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), stride, padding)

    def _normalized(self, name: str, x: Tensor) -> Tensor:
        return F.group_norm(x, 32, self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-6)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        y = self._normalized(name, x)
        return y * torch.sigmoid(y)

    def _block(self, name: str, x: Tensor) -> Tensor:
        y = self._conv(f"{name}.conv1", self._norm(f"{name}.norm1", x))
        y = self._conv(f"{name}.conv2", self._norm(f"{name}.norm2", y))
        if f"{name}.nin_shortcut.weight" in self.state:
            x = self._conv(f"{name}.nin_shortcut", y if self.of_output else x)
        return x + y

    def _attention(self, name: str, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y = self._normalized(f"{name}.norm", x)
        q, k, v = (self._conv(f"{name}.{part}", y).reshape(b, c, h * w) for part in "qkv")
        share = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / c**0.5, 2)
        return x + self._conv(f"{name}.proj_out", torch.einsum("bij,bcj->bci", share, v).reshape(b, c, h, w))

    def _halve(self, name: str, x: Tensor) -> Tensor:
        return self._conv(name, F.pad(x, (0, 1, 0, 1)), 2, 0)

    def _mean(self, _: str, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2)

    def _double(self, name: str, x: Tensor) -> Tensor:
        return self._conv(name, x.repeat_interleave(2, 2).repeat_interleave(2, 3))


def taming(
    ch: int = 32, mult: tuple[int, ...] = (1, 1, 2), blocks: int = 1, z: int = 8, dim: int = 4, codes: int = 64
) -> Checkpoint:
    """As taming-transformers and latent diffusion save it, with attention at the coarsest level and in the middle."""
    last = len(mult) - 1
    encoder = [Step("conv", "encoder.conv_in", 3, ch)]
    width = ch
    for level, factor in enumerate(mult):
        for block in range(blocks):
            encoder.append(Step("block", f"encoder.down.{level}.block.{block}", width, ch * factor))
            width = ch * factor
            if level == last:
                encoder.append(Step("attention", f"encoder.down.{level}.attn.{block}", width, width))
        if level < last:
            encoder.append(Step("halve", f"encoder.down.{level}.downsample.conv", width, width))
    encoder += _middle("encoder.mid.block_1", "encoder.mid.attn_1", "encoder.mid.block_2", width)
    encoder += [Step("norm", "encoder.norm_out", width, width), Step("conv", "encoder.conv_out", width, z)]
    encoder.append(Step("conv", "quant_conv", z, dim, 1))
    decoder = [Step("conv", "post_quant_conv", dim, z, 1), Step("conv", "decoder.conv_in", z, width)]
    decoder += _middle("decoder.mid.block_1", "decoder.mid.attn_1", "decoder.mid.block_2", width)
    for level in reversed(range(len(mult))):
        for block in range(blocks + 1):
            decoder.append(Step("block", f"decoder.up.{level}.block.{block}", width, ch * mult[level]))
            width = ch * mult[level]
            if level == last:
                decoder.append(Step("attention", f"decoder.up.{level}.attn.{block}", width, width))
        if level:
            decoder.append(Step("double", f"decoder.up.{level}.upsample.conv", width, width))
    decoder += [Step("norm", "decoder.norm_out", width, width), Step("conv", "decoder.conv_out", width, 3)]
    return _made(encoder, decoder, codes, dim)


def llamagen(ch: int = 32, mult: tuple[int, ...] = (1, 2), z: int = 16, dim: int = 8, codes: int = 64) -> Checkpoint:
    """As LlamaGen saves it: blocks counted in the order they are computed in, attention at the coarsest level."""
    last = len(mult) - 1
    encoder = [Step("conv", "encoder.conv_in", 3, ch)]
    width = ch
    for level, factor in enumerate(mult):
        for block in range(2):
            encoder.append(Step("block", f"encoder.conv_blocks.{level}.res.{block}", width, ch * factor))
            width = ch * factor
            if level == last:
                encoder.append(Step("attention", f"encoder.conv_blocks.{level}.attn.{block}", width, width))
        if level < last:
            encoder.append(Step("halve", f"encoder.conv_blocks.{level}.downsample.conv", width, width))
    encoder += _middle("encoder.mid.0", "encoder.mid.1", "encoder.mid.2", width)
    encoder += [Step("norm", "encoder.norm_out", width, width), Step("conv", "encoder.conv_out", width, z)]
    encoder.append(Step("conv", "quant_conv", z, dim, 1))
    decoder = [Step("conv", "post_quant_conv", dim, z, 1), Step("conv", "decoder.conv_in", z, width)]
    decoder += _middle("decoder.mid.0", "decoder.mid.1", "decoder.mid.2", width)
    for place, factor in enumerate(reversed(mult)):
        for block in range(3):
            decoder.append(Step("block", f"decoder.conv_blocks.{place}.res.{block}", width, ch * factor))
            width = ch * factor
            if place == 0:
                decoder.append(Step("attention", f"decoder.conv_blocks.{place}.attn.{block}", width, width))
        if place < last:
            decoder.append(Step("double", f"decoder.conv_blocks.{place}.upsample.conv", width, width))
    decoder += [Step("norm", "decoder.norm_out", width, width), Step("conv", "decoder.conv_out", width, 3)]
    made = _made(encoder, decoder, codes, dim)
    made.state["quantize.codebook_used"] = torch.zeros(65536)
    return made


def maskgit(
    middle: Callable[[int], str], upsample: str, ch: int = 32, mult: tuple[int, ...] = (1, 1, 2), dim: int = 8
) -> Checkpoint:
    """As MAGE and open-muse save it: no attention, average pooling, no biases in blocks, no convolutions of codes."""
    encoder = [Step("conv", "encoder.conv_in", 3, ch, bias=False)]
    width = ch
    for level, factor in enumerate(mult):
        for block in range(2):
            encoder.append(Step("block", f"encoder.down.{level}.block.{block}", width, ch * factor, bias=False))
            width = ch * factor
        if level + 1 < len(mult):
            encoder.append(Step("mean"))
    encoder += [Step("block", f"encoder.mid.{middle(place)}", width, width, bias=False) for place in range(2)]
    encoder += [Step("norm", "encoder.norm_out", width, width), Step("conv", "encoder.conv_out", width, dim, 1)]
    decoder = [Step("conv", "decoder.conv_in", dim, width)]
    decoder += [Step("block", f"decoder.mid.{middle(place)}", width, width, bias=False) for place in range(2)]
    for level in reversed(range(len(mult))):
        for block in range(2):
            decoder.append(Step("block", f"decoder.up.{level}.block.{block}", width, ch * mult[level], bias=False))
            width = ch * mult[level]
        if level:
            decoder.append(Step("double", f"decoder.up.{level}.{upsample}", width, width))
    decoder += [Step("norm", "decoder.norm_out", width, width), Step("conv", "decoder.conv_out", width, 3)]
    return _made(encoder, decoder, 64, dim, of_output=True)


def mage() -> Checkpoint:
    return maskgit(lambda place: f"block_{place + 1}", "upsample.conv")


def muse() -> Checkpoint:
    return maskgit(str, "upsample_conv")


def _middle(first: str, attention: str, second: str, width: int) -> list[Step]:
    return [
        Step("block", first, width, width),
        Step("attention", attention, width, width),
        Step("block", second, width, width),
    ]


def _made(encoder: list[Step], decoder: list[Step], codes: int, dim: int, of_output: bool = False) -> Checkpoint:
    """With random tensors that keep activations of order one."""
    generator = torch.Generator().manual_seed(0)
    state: State = {}

    def conv(name: str, inputs: int, outputs: int, side: int, bias: bool) -> None:
        spread = (inputs * side * side) ** -0.5
        state[f"{name}.weight"] = torch.randn(outputs, inputs, side, side, generator=generator) * spread
        if bias:
            state[f"{name}.bias"] = 0.3 * torch.randn(outputs, generator=generator)

    def norm(name: str, width: int) -> None:
        state[f"{name}.weight"] = 1 + 0.3 * torch.randn(width, generator=generator)
        state[f"{name}.bias"] = 0.3 * torch.randn(width, generator=generator)

    for step in [*encoder, *decoder]:
        name, inputs, outputs = step.name, step.inputs, step.outputs
        if step.kind in ("conv", "halve", "double"):
            conv(name, inputs, outputs, step.side, step.bias)
        elif step.kind == "norm":
            norm(name, inputs)
        elif step.kind == "attention":
            norm(f"{name}.norm", inputs)
            for part in ("q", "k", "v", "proj_out"):
                conv(f"{name}.{part}", inputs, inputs, 1, True)
        elif step.kind == "block":
            norm(f"{name}.norm1", inputs)
            conv(f"{name}.conv1", inputs, outputs, 3, step.bias)
            norm(f"{name}.norm2", outputs)
            conv(f"{name}.conv2", outputs, outputs, 3, step.bias)
            if inputs != outputs:
                conv(f"{name}.nin_shortcut", outputs if of_output else inputs, outputs, 1, step.bias)
    state["quantize.embedding.weight"] = torch.randn(codes, dim, generator=generator)
    return Checkpoint(encoder, decoder, state, of_output)


def saved(folder: Path, state: dict[str, Any], name: str = "model.safetensors") -> str:
    path = folder / name
    if name.endswith(".safetensors"):
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return str(path)


def imported(folder: Path, checkpoint: Checkpoint, **options: Any) -> ConvVQ:
    return import_checkpoint(saved(folder, checkpoint.state), **options).tokenizer


def ibq_yaml(**params: Any) -> str:
    network = {"double_z": False, "z_channels": 8, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 1, 2]}
    params = {"embed_dim": 4, "n_embed": 64, "ddconfig": {**network, "num_res_blocks": 1}, **params}
    return yaml.safe_dump({"model": {"class_path": "src.IBQ.models.ibqgan.IBQ", "init_args": params}})
