"""Training jobs from end to end: images in, a saved tokenizer out; in this process, under torchrun, or on Ray Train."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast

import torch
from pydantic import ValidationError
from torch import nn

from tokenshard.errors import SpecError
from tokenshard.quantizers.distributed import rank_and_world
from tokenshard.quantizers.registry import trainable_quantizer
from tokenshard.quantizers.rvq import RVQ
from tokenshard.spec.job import TrainTokenizer
from tokenshard.spec.train import FrozenEncoderSpec
from tokenshard.store import Store
from tokenshard.tokenizers.conv_network import AutoEncoder
from tokenshard.tokenizers.encoders import load_encoder
from tokenshard.tokenizers.folder import read_tokenizer_spec
from tokenshard.tokenizers.frozen import frozen_network
from tokenshard.tokenizers.grid_network import GridNetworkConfig
from tokenshard.tokenizers.networks import first_error
from tokenshard.training.clips import Held, Pool
from tokenshard.training.crops import PixelPool
from tokenshard.training.distributed import check_shared, in_processes
from tokenshard.training.fields import FieldPool, Lattice, training_fields
from tokenshard.training.frozen import decoder_for, preparation
from tokenshard.training.grid_tokenizer import GridTraining
from tokenshard.training.images import training_clips, training_images
from tokenshard.training.metrics import last_figures
from tokenshard.training.perceptual import load_lpips
from tokenshard.training.recipe import TokenizerRecipe
from tokenshard.training.tokenizer import FOLDER, TokenizerTraining

DONE = "tokenizer.json"


@dataclass(frozen=True)
class Training:
    """What training a tokenizer came to."""

    output: str
    fingerprint: str
    """of the tokenizer; empty where the time was up before the end"""
    steps: int
    """since the start of the job, earlier runs included"""
    seconds: float
    """that these steps took"""
    psnr: float | None
    """of held-out images, dB; None before the first validation"""
    perplexity: float | None

    def json(self) -> dict[str, Any]:
        """The same as `tokenizer train --json` prints."""
        return asdict(self)


def train_tokenizer(spec: TrainTokenizer, say: Callable[[str], None]) -> Training:
    """Run or resume a training job; a finished one is left as it is. In all processes that torchrun started.

    Raises SpecError, StoreError, FormatError, and JobError where workers are lost too often.
    """
    encoder = None if spec.encoder is None else load_encoder(spec.encoder.name)
    recipe = recipe_of(spec, encoder)
    output = Store(spec.output, spec.storage)
    if output.exists(DONE):
        say(f"{spec.output}: holds a trained tokenizer already; nothing was done")
    else:
        check_shared(recipe.batch, spec.engine.workers)
        here = partial(_train_here, spec, recipe, encoder)
        in_processes(here, _train_on_ray, spec.model_dump(mode="json"), spec.engine, say)
    return _result(spec, output)


def recipe_of(spec: TrainTokenizer, encoder: nn.Module | None = None) -> TokenizerRecipe:
    """The recipe with its network; SpecError where the two, or quantizer and options, do not fit."""
    fields = spec.recipe.model_dump()
    if spec.encoder is not None and encoder is not None:
        fields["network"] = _network_around(encoder, spec.encoder, spec.recipe.network)
    elif fields["network"] is None:
        fields["network"] = "f8"
    try:
        recipe = TokenizerRecipe.model_validate(fields)
    except ValidationError as error:
        place, message = first_error(error)
        raise SpecError(f"recipe{'.' if place else ''}{place}: {message}") from error
    if isinstance(recipe.network, GridNetworkConfig) and (recipe.losses.lpips or recipe.losses.gan):
        raise SpecError("recipe.losses: lpips and gan are of pictures; a network of grids learns from l1, l2, gradient")
    options = {"dim": recipe.network.dim, "seed": recipe.seed, **recipe.quantizer_options}
    made = trainable_quantizer(recipe.quantizer, **options)
    if isinstance(recipe.network, GridNetworkConfig) and len(made.levels) > 1 and not isinstance(made, RVQ):
        raise SpecError(f"recipe.quantizer: patches of grids use first levels alone; {recipe.quantizer} has none")
    return recipe


def _network_around(encoder: nn.Module, spec: FrozenEncoderSpec, network: Any) -> dict[str, Any]:
    """The network given where it is one around an encoder, else a new one with the decoder of the network of a name."""
    if isinstance(network, dict) and network.get("architecture") == "frozen":
        return network
    if isinstance(network, dict):
        raise SpecError("recipe.network: with an encoder given, the name of a network, for its decoder")
    return frozen_network(
        spec.name, encoder, decoder_for(encoder, spec.name, network), spec.dim, spec.reweight
    ).model_dump()


def _train_here(
    spec: TrainTokenizer,
    recipe: TokenizerRecipe,
    encoder: nn.Module | None,
    device: str,
    say: Callable[[str], None],
) -> None:
    """This process's part of the training, or all of it."""
    rank, world = rank_and_world()
    say = say if rank == 0 else lambda text: None
    check_shared(recipe.batch, world)
    output = Store(spec.output, spec.storage)
    lpips = None
    if spec.lpips_weights is not None and recipe.losses.lpips:
        lpips = load_lpips(spec.lpips_weights, spec.storage)
    options: dict[str, Any] = {}
    pool: Held
    held_out: Held
    if isinstance(recipe.network, GridNetworkConfig):
        pool, held_out = training_fields(spec.source, recipe.network.downsample, recipe.seed, spec.storage, say)
        recipe, options["prepare"] = _framed(recipe, pool.lattice)
    else:
        pool, held_out = _pools(spec, recipe, say)
    shared = f", {world} workers" if world > 1 else ""
    what = "tiles" if isinstance(pool, FieldPool) else "clips" if recipe.temporal else "images"
    say(f"{len(pool):,} {what} to train on, {len(held_out):,} held out; {device}{shared}")
    if spec.encoder is not None and encoder is not None and isinstance(pool, PixelPool):
        options["prepare"] = preparation(encoder, spec.encoder.name, pool, recipe)
    training = (GridTraining if isinstance(pool, FieldPool) else TokenizerTraining)(
        recipe,
        pool,
        held_out,
        output,
        device=device,
        compiled=spec.engine.compile,
        lpips=lpips,
        tensorboard=spec.log.tensorboard and rank == 0,
        wandb=None if rank else spec.log.wandb,
        say=say,
        **options,
    )
    minutes = spec.engine.max_minutes
    training.run(spec.log, math.inf if minutes is None else 60 * minutes)
    training.metrics.close()


def _pools(spec: TrainTokenizer, recipe: TokenizerRecipe, say: Callable[[str], None]) -> tuple[Pool, Pool]:
    """What is trained on, and what is held out."""
    if not recipe.temporal and spec.source.clips is None:
        return training_images(spec.source, spec.storage, say)
    return training_clips(spec.source, recipe.frames if recipe.temporal else None, spec.storage, say)


def _framed(recipe: TokenizerRecipe, lattice: Lattice) -> tuple[TokenizerRecipe, Callable[[AutoEncoder], None]]:
    """The recipe of a network of grids with what its cells are measured in, and what puts the surface into it."""
    network = cast(GridNetworkConfig, recipe.network).model_copy(update={"frame": lattice.frame})

    def prepare(made: AutoEncoder) -> None:
        surface = made.decoder.get_buffer("surface")
        surface.copy_(torch.from_numpy(lattice.surface).to(surface))

    return recipe.model_copy(update={"network": network}), prepare


def _train_on_ray(config: dict[str, Any], device: str, say: Callable[[str], None]) -> None:
    """What a worker of Ray Train does on the device it was given; its process group is up."""
    spec = TrainTokenizer.model_validate(config)
    encoder = None if spec.encoder is None else load_encoder(spec.encoder.name)
    _train_here(spec, recipe_of(spec, encoder), encoder, device, say)


def _result(spec: TrainTokenizer, output: Store) -> Training:
    fingerprint = read_tokenizer_spec(output).fingerprint if output.exists(DONE) else ""
    last = last_figures(output, FOLDER)
    return Training(
        spec.output,
        fingerprint,
        int(last.get("step", 0)),
        float(last.get("seconds", 0.0)),
        last.get("psnr"),
        last.get("perplexity"),
    )
