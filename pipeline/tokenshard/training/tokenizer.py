"""Training of conv tokenizers on raw images: reconstruction and quantizer losses, averaged weights, exact resume.

Three stages. Until ``recipe.frozen_from`` everything learns. Then the encoder is replaced by its average and stays; for
a quarter of the rest the codebook still follows it. To the end only the decoder learns, for codes that no longer move.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from tokenshard.errors import FormatError
from tokenshard.quantizers.base import Quantized
from tokenshard.quantizers.registry import trainable_quantizer
from tokenshard.spec.base import digest
from tokenshard.store import Store
from tokenshard.tokenizers.conv import ConvConfig, ConvVQ
from tokenshard.tokenizers.conv_network import AutoEncoder
from tokenshard.tokenizers.folder import save_tokenizer
from tokenshard.training.crops import PixelPool
from tokenshard.training.metrics import MetricsLog, code_statistics, validate
from tokenshard.training.recipe import Losses, TokenizerRecipe
from tokenshard.training.state import load_optimizer, load_state, optimizer_tensors, save_state

FOLDER = "training"
"""Below the output: state, metrics and sample pictures of the run."""
SETTLE = 0.25
"""Share of the last stage in which the codebook still follows the encoder."""
COLLAPSED = 0.05
"""Below this perplexity, as a share of the codebook size, the alarm is raised."""


class TokenizerTraining:
    """One run: a network on a device, with its optimizer, averages and metrics. Resumes what ``output`` holds of it.

    pool: images to train on; held_out: images for validation, never trained on.
    """

    def __init__(
        self,
        recipe: TokenizerRecipe,
        pool: PixelPool,
        held_out: PixelPool,
        output: Store,
        *,
        device: str = "cpu",
        compiled: bool = False,
        say: Callable[[str], None] = print,
    ) -> None:
        self.recipe, self.output, self.device, self._say = recipe, output, torch.device(device), say
        self.pool, self.held_out = pool.to(device), held_out.to(device)
        torch.manual_seed(recipe.seed)
        self.network = AutoEncoder(recipe.network).to(self.device)
        options = {"dim": recipe.network.dim, "seed": recipe.seed, **recipe.quantizer_options}
        self.quantizer = trainable_quantizer(recipe.quantizer, **options).to(self.device)
        if self.device.type != "cpu":
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.learner = nn.ModuleDict({"network": self.network, "quantizer": self.quantizer})
        self.optimizer = torch.optim.AdamW(
            [parameter for parameter in self.learner.parameters() if parameter.requires_grad],
            recipe.lr,
            (0.9, 0.99),
            weight_decay=0.0,
            fused=self.device.type == "cuda",
        )
        self.step = 0
        self.seconds = 0.0
        self.metrics = MetricsLog(output, f"{FOLDER}/metrics")
        self._resume()
        self._encode: Callable[[Tensor], Tensor] = (
            torch.compile(self.network.encoder) if compiled else self.network.encoder
        )
        self._decode: Callable[[Tensor], Tensor] = (
            torch.compile(self.network.decoder) if compiled else self.network.decoder
        )
        self._sums = torch.zeros(4, device=self.device)
        self._counts = [torch.zeros(size, device=self.device) for size in self.quantizer.levels]
        self._summed = 0

    def run(
        self, *, checkpoint_every: int = 1000, log_every: int = 100, max_seconds: float = math.inf
    ) -> ConvVQ | None:
        """Train to the end and save the tokenizer to the output; None where the time was up before.

        State, metrics and sample pictures are written every ``checkpoint_every`` steps and when the time is up.
        """
        started = before = time.monotonic()
        while self.step < self.recipe.steps:
            self._one_step()
            last = self.step == self.recipe.steps
            checkpoint = last or self.step % checkpoint_every == 0
            if checkpoint or self.step % log_every == 0 or self.step in (1, 10):
                self._log(validated=checkpoint)  # waits for the device, so that the clock below tells the truth
                now = time.monotonic()
                self.seconds, before = self.seconds + now - before, now
                up = now - started > max_seconds
                if (checkpoint or up) and not last:
                    self._checkpoint()
                if up and not last:
                    self._say(f"time is up at step {self.step:,} of {self.recipe.steps:,}; run again to go on")
                    return None
        return self._finish()

    def tokenizer(self) -> ConvVQ:
        """The tokenizer as it is now, made of the averaged weights, on the CPU."""
        quantizer = copy.deepcopy(self.quantizer).cpu().exported()
        options = quantizer.options()
        config = ConvConfig(
            network=self.recipe.network,
            quantizer=quantizer.name,
            quantizer_options=options,
            stored=self.recipe.stored,
            recipe=self.recipe.model_dump(mode="json", exclude={"network"}),
        )
        network = AutoEncoder(self.recipe.network)
        network.load_state_dict({name: tensor.cpu() for name, tensor in self.average.state_dict().items()})
        return ConvVQ(config, network, quantizer)

    # -- one step -----------------------------------------------------------------------------------------------------

    def _one_step(self) -> None:
        recipe, frozen = self.recipe, self.step >= self.recipe.frozen_from
        if self.step == recipe.frozen_from:
            self.network.encoder.load_state_dict(self.average.encoder.state_dict())
        settled = frozen and self.step >= recipe.frozen_from + SETTLE * (recipe.steps - recipe.frozen_from)
        self.learner.train()
        self.quantizer.train(not settled)
        images = self.pool.draw(recipe.batch, recipe.crop, recipe.scale, recipe.seed, self.step)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            with torch.set_grad_enabled(not frozen):
                z = (self.network.encoder if frozen else self._encode)(self._laid_out(images))
                quantized: Quantized = self.quantizer(z.float())
            # a compiled decoder would be compiled again for an input without gradient
            made = self._decode(self._laid_out(quantized.vectors).requires_grad_())
        loss, parts = reconstruction_loss(made.float(), images, recipe.losses)
        total = loss if frozen else loss + quantized.loss
        rate = learning_rate(recipe, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.learner.parameters(), recipe.clip)
        self.optimizer.step()
        self._average(frozen)
        self.step += 1
        with torch.no_grad():
            self._sums += torch.stack([total.detach(), parts[0], parts[1], quantized.loss.detach()])
            for counts, ids in zip(self._counts, quantized.ids.unbind(1), strict=True):
                counts += torch.bincount(ids.flatten(), minlength=len(counts))
        self._summed += 1

    def _laid_out(self, x: Tensor) -> Tensor:
        return x if self.device.type == "cpu" else x.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def _average(self, frozen: bool) -> None:
        """Averages follow the weights, faster in the beginning."""
        kept = min(self.recipe.ema, (self.step + 1) / (self.step + 10))
        mine, own = (self.average.decoder, self.network.decoder) if frozen else (self.average, self.network)
        torch._foreach_lerp_(list(mine.parameters()), list(own.parameters()), 1 - kept)

    # -- what a run leaves behind -------------------------------------------------------------------------------------

    def _log(self, validated: bool) -> None:
        means = (self._sums / max(1, self._summed)).tolist()
        statistics = [code_statistics(counts) for counts in self._counts]
        row: dict[str, Any] = {
            "step": self.step,
            "seconds": round(self.seconds, 2),
            "lr": learning_rate(self.recipe, self.step - 1),
            **dict(zip(("loss", "l1", "l2", "quantizer_loss"), means, strict=True)),
            "train_psnr": 10 * math.log10(4 / max(means[2], 1e-10)),
            "usage": min(one.usage for one in statistics),
            "perplexity": min(one.perplexity for one in statistics),
            "entropy": sum(one.entropy for one in statistics),
        }
        if validated:
            picture = f"{FOLDER}/samples-{self.step:08d}.png"
            row["psnr"], row["val_entropy"] = validate(
                self.average, self.quantizer, self.held_out, self.output, picture
            )
        ids = float(self._counts[0].sum())
        collapsed = any(
            len(counts) >= 16 and one.perplexity < COLLAPSED * min(len(counts), ids / 20)
            for counts, one in zip(self._counts, statistics, strict=True)
        )
        row["collapsed"] = collapsed and self.step > self.recipe.warmup
        self._sums.zero_()
        for counts in self._counts:
            counts.zero_()
        self._summed = 0
        self.metrics.add(row)
        self._say(
            f"step {self.step:>7,}  {self.seconds:7.1f} s  loss {row['loss']:.4f}  train {row['train_psnr']:.2f} dB"
            + (f"  held-out {row['psnr']:.2f} dB" if validated else "")
            + f"  perplexity {row['perplexity']:.0f}"
            + ("  CODEBOOK COLLAPSE: few codes are used; try a lower lr or another quantizer" if collapsed else "")
        )

    def _facts(self) -> dict[str, Any]:
        return {"step": self.step, "seconds": self.seconds, "recipe": digest(self.recipe.model_dump(mode="json"))}

    def _checkpoint(self) -> None:
        names = {id(parameter): name for name, parameter in self.learner.named_parameters()}
        tensors = {f"learner.{name}": tensor for name, tensor in self.learner.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        tensors |= optimizer_tensors(self.optimizer, names)
        save_state(self.output, FOLDER, tensors, self._facts())
        self.metrics.write()

    def _resume(self) -> None:
        found = load_state(self.output, FOLDER)
        if found is None:
            return
        tensors, facts = found
        where = self.output.url(f"{FOLDER}/state.json")
        if facts.get("recipe") != self._facts()["recipe"]:
            raise FormatError(f"{where}: belongs to another recipe; choose another output folder")
        try:
            for head, module in (("learner.", self.learner), ("average.", self.average)):
                mine = {name.removeprefix(head): value for name, value in tensors.items() if name.startswith(head)}
                module.load_state_dict(mine)
            load_optimizer(self.optimizer, self.learner, tensors)
        except RuntimeError as error:
            raise FormatError(f"{where}: does not fit the recipe ({error})") from error
        self.step, self.seconds = int(facts["step"]), float(facts["seconds"])
        self.metrics.read(self.step)
        self._say(f"going on from step {self.step:,}")

    def _finish(self) -> ConvVQ:
        made = self.tokenizer()
        save_tokenizer(made, self.output, "")
        self.metrics.write()
        self.output.put(f"{FOLDER}/recipe.json", self.recipe.model_dump_json(indent=1).encode())
        if (facts := load_state(self.output, FOLDER)) is not None:
            with suppress(FileNotFoundError):
                self.output.delete(f"{FOLDER}/state.json")
                self.output.delete(facts[1]["tensors"])
        return made


def learning_rate(recipe: TokenizerRecipe, step: int) -> float:
    """Linear warm-up, then half a cosine down to a hundredth; a second, lower one for the decoder alone."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    start, end, top = recipe.warmup, recipe.frozen_from, 1.0
    if step >= recipe.frozen_from:
        start, end, top = recipe.frozen_from, recipe.steps, 0.5
    place = (step - start) / max(1, end - start)
    return recipe.lr * (0.01 + (top - 0.01) * 0.5 * (1 + math.cos(math.pi * min(1.0, place))))


def reconstruction_loss(made: Tensor, images: Tensor, losses: Losses) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The weighted loss of float images [B, 3, H, W], and mean |error| and error² without gradient."""
    error = made - images
    l1, l2 = error.abs().mean(), error.square().mean()
    loss = losses.l1 * l1 + losses.l2 * l2
    if losses.gradient:
        loss = loss + losses.gradient * (error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean())
    return loss, (l1.detach(), l2.detach())
