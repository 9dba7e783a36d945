"""Training of tokenizers on raw images or clips: reconstruction and quantizer losses, averaged weights, exact resume.

Three stages. Until ``recipe.frozen_from`` everything learns. Then the encoder is replaced by its average and stays; for
a quarter of the rest the codebook still follows it. To the end only the decoder learns, for codes that no longer move.

In several processes (see :mod:`.distributed`) each computes its part of the global batch, and the first one writes.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from tokenshard.errors import FormatError, SpecError
from tokenshard.quantizers.distributed import rank_and_world
from tokenshard.quantizers.registry import trainable_quantizer
from tokenshard.spec.base import digest
from tokenshard.spec.train import TrainingLogSpec
from tokenshard.store import Store
from tokenshard.tokenizers.conv import ConvVQ
from tokenshard.tokenizers.conv_network import AutoEncoder
from tokenshard.tokenizers.folder import save_tokenizer
from tokenshard.tokenizers.trained import ConvConfig, TrainedTokenizer
from tokenshard.tokenizers.video import VideoVQ
from tokenshard.training.adversary import Adversary
from tokenshard.training.clips import Held, Pool
from tokenshard.training.distributed import any_of_all, check_equal, data_parallel, own_part
from tokenshard.training.learner import Average, Learner, as_images
from tokenshard.training.losses import learning_rate, reconstruction_loss
from tokenshard.training.metrics import MetricsLog, RunningMetrics, validate
from tokenshard.training.perceptual import Lpips
from tokenshard.training.recipe import TokenizerRecipe
from tokenshard.training.state import load_optimizer, load_state, optimizer_tensors, save_state

FOLDER = "training"
"""Below the output: state, metrics and sample pictures of the run."""
SETTLE = 0.25
"""Share of the last stage in which the codebook still follows the encoder."""
ADVICE = "few codes are used; try a lower lr, another quantizer, or balance=0.3 of this one"


class Step(NamedTuple):
    """What a step made of its batch."""

    loss: Tensor
    """of the reconstruction"""
    quantizer_loss: Tensor
    ids: Tensor
    """int64 [B, levels, *grid]"""
    terms: dict[str, Tensor]
    """for the log, without gradient"""
    made: Tensor
    images: Tensor


class TokenizerTraining:
    """One run: a network on a device, with its optimizer, averages and metrics. Resumes what ``output`` holds of it.

    pool: images or clips to train on; held_out: those for validation, never trained on (of grids see
    :mod:`.grid_tokenizer`);
    lpips: for ``recipe.losses.lpips``;
    prepare: is given the network before anything else, to put into it what is not trained
    """

    def __init__(
        self,
        recipe: TokenizerRecipe,
        pool: Held,
        held_out: Held,
        output: Store,
        *,
        device: str = "cpu",
        compiled: bool = False,
        lpips: Lpips | None = None,
        tensorboard: bool = False,
        wandb: str | None = None,
        prepare: Callable[[AutoEncoder], None] = lambda _: None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.recipe, self.output, self.device, self._say = recipe, output, torch.device(device), say
        self._rank, world = rank_and_world()
        if recipe.losses.lpips and lpips is None:
            raise SpecError("losses.lpips needs a file of weights")
        self.pool, self.held_out = pool.to(device), held_out.to(device)
        torch.manual_seed(recipe.seed)
        self.network = AutoEncoder(recipe.network).to(self.device)
        prepare(self.network)
        options = {"dim": recipe.network.dim, "seed": recipe.seed, **recipe.quantizer_options}
        self.quantizer = trainable_quantizer(recipe.quantizer, **options).to(self.device)
        if self.device.type != "cpu":
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = Average(self.network, recipe.ema)
        self.learner = self._learner()
        self.optimizer = torch.optim.AdamW(
            [parameter for parameter in self.learner.parameters() if parameter.requires_grad],
            recipe.lr,
            (0.9, 0.99),
            weight_decay=0.0,
            fused=self.device.type == "cuda",
        )
        self.lpips = lpips.to(self.device) if lpips is not None else None
        self.adversary = Adversary(self.device) if recipe.losses.gan else None
        self.step = 0
        self.seconds = 0.0
        self.metrics = MetricsLog(output, FOLDER, tensorboard, wandb)
        self._resume()
        if world > 1:
            check_equal({"step": self.step, "images": len(pool), "sum of pixels": pool.checksum()}, self.device)
        if compiled:
            self.network.encoder.compile()
            self.network.decoder.compile()
        if self.step > recipe.frozen_from:
            self.learner.freeze()
        self._forward = data_parallel(self.learner)
        self._running = RunningMetrics(self.quantizer.levels, self.device)

    def run(self, log: TrainingLogSpec | None = None, max_seconds: float = math.inf) -> TrainedTokenizer | None:
        """Train to the end and save the tokenizer to the output; None where the time was up before.

        A state to go on from is written as ``log`` says and when the time is up.
        """
        log = log or TrainingLogSpec()
        validate_every = log.validate_every or log.checkpoint_every
        started = before = time.monotonic()
        while self.step < self.recipe.steps:
            self._one_step()
            last = self.step == self.recipe.steps
            checkpoint, validated = (last or self.step % n == 0 for n in (log.checkpoint_every, validate_every))
            if checkpoint or validated or self.step % log.every == 0 or self.step in (1, 10):
                self._log(validated)  # waits for the device, so that the clock below tells the truth
                now = time.monotonic()
                self.seconds, before = self.seconds + now - before, now
                up = any_of_all(now - started > max_seconds, self.device)
                if (checkpoint or up) and not last:
                    self._checkpoint()
                if up and not last:
                    self._say(f"time is up at step {self.step:,} of {self.recipe.steps:,}; run again to go on")
                    return None
        return self._finish()

    def tokenizer(self) -> TrainedTokenizer:
        """The tokenizer as it is now, made of the averaged weights, on the CPU."""
        quantizer = copy.deepcopy(self.quantizer).cpu().exported()
        config = ConvConfig(
            network=self.recipe.network,
            quantizer=quantizer.name,
            quantizer_options=quantizer.options(),
            stored=self.recipe.stored,
            recipe=self.recipe.model_dump(mode="json", exclude={"network"}),
        )
        network = AutoEncoder(self.recipe.network)
        network.load_state_dict({name: tensor.cpu() for name, tensor in self.average.network.state_dict().items()})
        return self._kind()(config, network, quantizer)

    # -- what is learned from -----------------------------------------------------------------------------------------

    def _learner(self) -> Learner:
        return Learner(self.network, self.quantizer, self.recipe.precision)

    def _kind(self) -> type[TrainedTokenizer]:
        """The tokenizer that comes out."""
        return VideoVQ if self.recipe.temporal else ConvVQ

    def _reconstructed(self, part: slice, frozen: bool) -> Step:
        """The part of this process of the batch of a step."""
        recipe = self.recipe
        images = cast(Pool, self.pool).draw(recipe.batch, recipe.crop, recipe.scale, recipe.seed, self.step, part)
        made, quantizer_loss, ids = self._forward(images, frozen)
        loss, (l1, l2) = reconstruction_loss(made, images, recipe.losses)
        return Step(loss, quantizer_loss, ids, {"l1": l1, "l2": l2}, made, images)

    def _validated(self) -> tuple[dict[str, float], bytes]:
        """Figures of what is held out, and a picture (PNG) of some of it."""
        psnr, entropy, picture = validate(self.average.network, self.quantizer, cast(Pool, self.held_out))
        return {"psnr": psnr, "val_entropy": entropy}, picture

    def _told(self, row: Mapping[str, Any]) -> str:
        """What the line of a row says of reconstructions."""
        held_out = f"  held-out {row['psnr']:.2f} dB" if "psnr" in row else ""
        return f"train {row['train_psnr']:.2f} dB{held_out}"

    # -- one step -----------------------------------------------------------------------------------------------------

    def _one_step(self) -> None:
        recipe, frozen = self.recipe, self.step >= self.recipe.frozen_from
        if self.step == recipe.frozen_from:
            self.network.encoder.load_state_dict(self.average.network.encoder.state_dict())
            self.learner.freeze()
            self._forward = data_parallel(self.learner)
        settled = frozen and self.step >= recipe.frozen_from + SETTLE * (recipe.steps - recipe.frozen_from)
        self.learner.train()
        self.quantizer.train(not settled)
        loss, quantizer_loss, ids, terms, made, images = self._reconstructed(own_part(recipe.batch), frozen)
        terms = {**terms, "quantizer_loss": quantizer_loss.detach()}
        loss = loss if frozen else loss + quantizer_loss
        loss = self._optional_losses(loss, made, images, terms)
        rate = learning_rate(recipe, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.learner.parameters(), recipe.clip)
        self.optimizer.step()
        if self.adversary is not None and self.step >= recipe.adversarial_from:
            terms["discriminator_loss"] = self.adversary.learn(as_images(images), as_images(made), rate)
        self.average.follow(self.network, self.step, frozen)
        self.step += 1
        self._running.add({"loss": loss.detach(), **terms}, ids)

    def _optional_losses(self, loss: Tensor, made: Tensor, images: Tensor, terms: dict[str, Tensor]) -> Tensor:
        """The loss with perceptual and adversarial terms, which are noted in ``terms``."""
        losses = self.recipe.losses
        if self.lpips is None and self.adversary is None:
            return loss
        made, images = as_images(made), as_images(images)
        if self.lpips is not None and losses.lpips:
            terms["lpips"] = self.lpips(made, images).mean()
            loss = loss + losses.lpips * terms["lpips"]
        if self.adversary is not None and self.step >= self.recipe.adversarial_from:
            terms["gan"] = self.adversary.loss(made)
            loss = loss + losses.gan * terms["gan"]
        terms |= {name: term.detach() for name, term in terms.items()}
        return loss

    # -- what a run leaves behind -------------------------------------------------------------------------------------

    def _log(self, validated: bool) -> None:
        figures = self._running.take()
        if self._rank:
            return
        row: dict[str, Any] = {
            "step": self.step,
            "seconds": round(self.seconds, 2),
            "lr": learning_rate(self.recipe, self.step - 1),
            **figures,
        }
        row["collapsed"] = figures["collapsed"] and self.step > self.recipe.warmup
        picture = None
        if validated:
            found, picture = self._validated()
            row |= found
        self.metrics.add(row, picture)
        self._say(
            f"step {self.step:>7,}  {self.seconds:7.1f} s  loss {row['loss']:.4f}  {self._told(row)}  perplexity "
            f"{row['perplexity']:.0f}" + (f"  CODEBOOK COLLAPSE: {ADVICE}" if row["collapsed"] else "")
        )

    def _facts(self) -> dict[str, Any]:
        facts = {"step": self.step, "seconds": self.seconds, "recipe": digest(self.recipe.model_dump(mode="json"))}
        return facts | ({"lpips": self.lpips.sha256} if self.lpips is not None else {})

    def _modules(self) -> dict[str, tuple[nn.Module, torch.optim.Optimizer | None]]:
        """What has a state, by the head of its names."""
        found: dict[str, tuple[nn.Module, torch.optim.Optimizer | None]] = {
            "learner": (self.learner, self.optimizer),
            "average": (self.average.network, None),
        }
        if self.adversary is not None:
            found["adversary"] = (self.adversary.discriminator, self.adversary.optimizer)
        return found

    def _checkpoint(self) -> None:
        if self._rank:
            return
        tensors: dict[str, Tensor] = {}
        for head, (module, optimizer) in self._modules().items():
            tensors |= {f"{head}.{name}": tensor for name, tensor in module.state_dict().items()}
            if optimizer is not None:
                tensors |= optimizer_tensors(optimizer, module, f"optimizer.{head}")
        save_state(self.output, FOLDER, tensors, self._facts())

    def _resume(self) -> None:
        found = load_state(self.output, FOLDER)
        if found is None:
            return
        tensors, facts = found
        where = self.output.url(f"{FOLDER}/state.json")
        if any(facts.get(name) != self._facts().get(name) for name in ("recipe", "lpips")):
            raise FormatError(f"{where}: belongs to another recipe; choose another output folder")
        try:
            for head, (module, optimizer) in self._modules().items():
                own = {
                    name.removeprefix(f"{head}."): value
                    for name, value in tensors.items()
                    if name.startswith(f"{head}.")
                }
                module.load_state_dict(own)
                if optimizer is not None:
                    load_optimizer(optimizer, module, tensors, f"optimizer.{head}")
        except RuntimeError as error:
            raise FormatError(f"{where}: does not fit the recipe ({error})") from error
        self.step, self.seconds = int(facts["step"]), float(facts["seconds"])
        self.metrics.read(self.step)
        self._say(f"going on from step {self.step:,}")

    def _finish(self) -> TrainedTokenizer:
        made = self.tokenizer()
        if self._rank == 0:
            save_tokenizer(made, self.output, "")
            self.output.put(f"{FOLDER}/recipe.json", self.recipe.model_dump_json(indent=1).encode())
            if (facts := load_state(self.output, FOLDER)) is not None:
                with suppress(FileNotFoundError):
                    self.output.delete(f"{FOLDER}/state.json")
                    self.output.delete(facts[1]["tensors"])
        any_of_all(False, self.device)  # all wait until it is saved
        return made
