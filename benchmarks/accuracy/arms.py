"""The arms of the benchmark: what is stored at a budget, how it is chosen, and the training on it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from accuracy import pixels, tokens
from accuracy.images import Images, Labels, Pixels
from accuracy.pixels import ENCODERS, PixelSetting
from accuracy.stored import Stored, alone, fitted, size_of
from accuracy.tokens import TokenSetting, key
from accuracy.training import Recipe, Trained, pretrain, train_adapter, train_pixels, train_tokens

ORIGINAL, FEWER = "original", "fewer images"
PIXELS = (FEWER, *ENCODERS)
TOKENS, DECODED, MASKED = "tokens", "tokens to pixels", "tokens + MTM"
ADAPTED = "tokens + MTM + TokenAdapt"
SHUFFLED_POSITIONS, SHUFFLED_LABELS = "tokens, shuffled positions", "tokens, shuffled labels"
ARMS = (ORIGINAL, *PIXELS, TOKENS, DECODED, MASKED, ADAPTED, SHUFFLED_POSITIONS, SHUFFLED_LABELS)
Setting = PixelSetting | TokenSetting | None
CHOICE_SEED = 1000


@dataclass(frozen=True)
class Choice:
    """What an arm stores at a budget, and its top-1 on held-out training images."""

    setting: Setting
    stored: Stored
    held_out_top1: float


class Arms:
    """All runs below ``out``. What is finished is read from there."""

    def __init__(
        self,
        train: Images,
        test: Images,
        side: int,
        recipe: Recipe,
        choice_steps: int,
        tokenizers: list[str],
        out: Path,
    ) -> None:
        self.train, self.test, self.side, self.recipe, self.out = train, test, side, recipe, out
        self.chooser = replace(recipe, steps=choice_steps)
        self.tokenizers = [TokenSetting(name) for name in tokenizers]

    # -- choices ------------------------------------------------------------------------------------------------------

    def choice(self, arm: str, budget: float) -> Choice | None:
        """The best setting of an arm on held-out training images; None where nothing fits the budget."""
        file = self.out / "choices" / f"{slug(arm)}-{budget:g}.json"
        if file.exists():
            found = json.loads(file.read_text())["chosen"]
            return None if found is None else _choice(found)
        tried = [one for one in self._tried(arm, budget) if one is not None]
        best = max(tried, key=lambda one: one.held_out_top1, default=None)
        _write(file, {"chosen": best and _json(best), "tried": [_json(one) for one in tried]})
        return best

    def _tried(self, arm: str, budget: float) -> Iterator[Choice | None]:
        if arm == FEWER:
            yield self._held_out(arm, budget, None, lambda count: pixels.originals(self.train.first(count)))
        elif arm in ENCODERS:
            for point in pixels.candidates(self.grid, arm, budget * self.train.bytes / len(self.train)):
                yield self._held_out(arm, budget, point, self._pixel_store(point))
        else:
            for tokenizer in self.tokenizers:
                yield self._held_out(arm, budget, tokenizer, self._token_store(tokenizer))

    def _held_out(self, arm: str, budget: float, setting: Setting, store: Callable[[int], Stored]) -> Choice | None:
        stored = fitted(store, len(self.train), budget * self.train.bytes, self.recipe.batch)
        if stored is None:
            return None
        first = self.train.chosen_from
        count = max(self.recipe.batch, min(first, round(first / len(self.train) * stored.images)))
        name = slug(f"choice {arm} {setting or ''} {count}")
        found = self._once(name, lambda output: self._held_out_run(setting, count, output))
        print(
            f"  {arm} at {budget:.0%}: {setting or ''} {stored.images:,} images: {found.top1:.1f} % held out",
            flush=True,
        )
        return Choice(setting, stored, found.top1)

    def _held_out_run(self, setting: Setting, count: int, output: Path) -> Trained:
        first = self.train.chosen_from
        if isinstance(setting, TokenSetting):
            folder = self.all_tokens(setting)
            source = {"path": str(folder), "where": f"key < '{key(count)}'", "val_where": f"key >= '{key(first)}'"}
            return train_tokens(self.chooser, source, self._grid(folder), output, CHOICE_SEED)
        held = self._as_stored(self.train_pixels[first:], setting), self.train.labels[first:]
        mine = self._as_stored(self.train_pixels[:count], setting), self.train.labels[:count]
        return train_pixels(self.chooser, mine, held, len(self.train.classes), output, CHOICE_SEED)

    # -- what is stored -----------------------------------------------------------------------------------------------

    @cached_property
    def train_pixels(self) -> Pixels:
        return self.train.pixels(self.side)

    @cached_property
    def test_pixels(self) -> Pixels:
        return self.test.pixels(self.side)

    @cached_property
    def grid(self) -> list[pixels.GridPoint]:
        file = self.out / "grid.json"
        if not file.exists():
            _write(file, [asdict(point) for point in pixels.measured_grid(self.train_pixels)])
        found = json.loads(file.read_text())
        return [pixels.GridPoint(**point | {"setting": PixelSetting(**point["setting"])}) for point in found]

    def _pixel_store(self, setting: PixelSetting) -> Callable[[int], Stored]:
        def store(count: int) -> Stored:
            folder = self.out / "pixels" / slug(f"{setting.codec} {setting} {count}")
            return pixels.write(self.train_pixels[:count], self.train.labels[:count], setting, folder)

        return store

    def _token_store(self, setting: TokenSetting) -> Callable[[int], Stored]:
        return lambda count: tokens.stored(self.token_folder(setting, count), setting)

    def all_tokens(self, setting: TokenSetting) -> Path:
        folder = self.out / "tokens" / slug(str(setting)) / "train"
        tokens.convert(self.train, self.side, setting.tokenizer, folder)
        return folder

    def test_tokens(self, setting: TokenSetting) -> Path:
        folder = self.all_tokens(setting).with_name("test")
        tokens.convert(self.test, self.side, str(tokens.tokenizer_of(self.all_tokens(setting))), folder)
        return folder

    def token_folder(self, setting: TokenSetting, count: int) -> Path:
        """The dataset of the first ``count`` images."""
        whole = self.all_tokens(setting)
        if count == len(self.train):
            return whole
        folder = whole.with_name(f"train-{count}")
        tokens.rewrite(whole, tokens.codes_of(whole)[:count], self.train.labels[:count], folder)
        return folder

    def adapter(self, setting: Setting) -> Path:
        """The token adapter of a tokenizer."""
        assert isinstance(setting, TokenSetting)
        whole = self.all_tokens(setting)
        folder = whole.with_name("adapter")
        with alone(folder):
            train_adapter(self.recipe, whole, whole.with_suffix(".csv"), folder)
        return folder

    def _as_stored(self, images: Pixels, setting: PixelSetting | None) -> Pixels:
        """Images as they come out of what stores them."""
        if setting is None:
            return images
        head, made = pixels.encoded(images, setting)
        return pixels.decoded(head, made, setting, self.side)

    def _grid(self, folder: Path) -> int:
        return int(tokens.grid_of(folder)[0])

    # -- runs ---------------------------------------------------------------------------------------------------------

    def run(self, arm: str, budget: float, seed: int, until: float = math.inf) -> dict[str, Any] | None:
        """The figures of a run; None where nothing fits the budget, or it would begin later than ``until``, a time of
        :func:`time.monotonic`."""
        if arm == ORIGINAL:
            choice: Choice | None = Choice(None, pixels.originals(self.train), 0.0)
        else:
            choice = self.choice(arm if arm in PIXELS else TOKENS, budget)
        if choice is None:
            return None
        name = slug(f"{arm} {choice.setting or ''} {choice.stored.images} {seed}")
        if time.monotonic() >= until and not self._finished(name).exists():
            return None
        train = self._token_run if isinstance(choice.setting, TokenSetting) else self._pixel_run
        trained = self._once(name, lambda output: train(arm, choice, output, seed))
        stored = self._with_networks(arm, choice)
        share = stored.bytes / self.train.bytes
        spent = f"{trained.top1:.2f} % top-1, {trained.cpu_seconds:.0f} CPU seconds"
        print(f"{arm:28} {budget:6.1%} seed {seed}: {share:8.3%} of the bytes, {spent}", flush=True)
        return {"arm": arm, "budget": budget, "seed": seed, "share": share, **stored.json(), **asdict(trained)}

    def _with_networks(self, arm: str, choice: Choice) -> Stored:
        """What is stored, with the networks that training needs."""
        stored = choice.stored
        if arm == DECODED:
            return replace(stored, counted={**stored.counted, "tokenizer": stored.apart["tokenizer"]}, apart={})
        if arm == ADAPTED:
            weights = size_of(self.adapter(choice.setting) / "model.safetensors")
            return replace(stored, counted={**stored.counted, "adapter": weights})
        return stored

    def _finished(self, name: str) -> Path:
        return self.out / "runs" / f"{name}.json"

    def _once(self, name: str, train: Callable[[Path], Trained]) -> Trained:
        """What a training came to, or had come to. It gets a folder to work in."""
        file = self._finished(name)
        with alone(file):
            if not file.exists():
                _write(file, asdict(train(self.out / "work" / name)))
        return Trained(**json.loads(file.read_text()))

    def _pixel_run(self, arm: str, choice: Choice, output: Path, seed: int) -> Trained:
        setting, count = choice.setting, choice.stored.images
        assert not isinstance(setting, TokenSetting)
        mine = self.train_pixels[:count], self.train.labels[:count]
        if setting is not None:
            mine = pixels.read(choice.stored, setting, self.side)
        return self._on_pixels(mine, self._as_stored(self.test_pixels, setting), output, seed)

    def _on_pixels(self, mine: tuple[Pixels, Labels], test: Pixels, output: Path, seed: int) -> Trained:
        return train_pixels(self.recipe, mine, (test, self.test.labels), len(self.train.classes), output, seed)

    def _token_run(self, arm: str, choice: Choice, output: Path, seed: int) -> Trained:
        setting = choice.setting
        assert isinstance(setting, TokenSetting)
        folder, test = self.token_folder(setting, choice.stored.images), self.test_tokens(setting)
        if arm == DECODED:
            mine = tokens.pixels_of(folder), tokens.labels_of(folder)
            return self._on_pixels(mine, tokens.pixels_of(test), output, seed)
        grid, start = self._grid(folder), None
        adapter = self.adapter(setting) if arm == ADAPTED else None
        if arm in (MASKED, ADAPTED):
            start = output.with_name(f"{output.name}-pretrained")
            pretrain(self.recipe, {"path": str(folder)}, grid, start, seed, adapter)
        if arm in (SHUFFLED_POSITIONS, SHUFFLED_LABELS):
            folder, test = self._shuffled(arm, folder, test)
        source = {"path": str(folder), "val": str(test)}
        return train_tokens(self.recipe, source, grid, output, seed, start, adapter)

    def _shuffled(self, arm: str, folder: Path, test: Path) -> tuple[Path, Path]:
        """Training and test set of a check that must fail to learn, in part or at all."""
        name = f"{folder.name}-{slug(arm)}"
        made = folder.with_name(name), folder.with_name(f"{name}-test")
        codes, labels = tokens.codes_of(folder), tokens.labels_of(folder)
        if arm == SHUFFLED_LABELS:
            tokens.rewrite(folder, codes, np.random.default_rng(0).permutation(labels), made[0])
            return made[0], test
        tokens.rewrite(folder, tokens.shuffled_positions(codes, 0), labels, made[0])
        tokens.rewrite(folder, tokens.shuffled_positions(tokens.codes_of(test), 1), tokens.labels_of(test), made[1])
        return made


def slug(text: str) -> str:
    """A name for files."""
    return "-".join("".join(letter if letter.isalnum() or letter == "." else " " for letter in text).split()).lower()


def _write(file: Path, value: Any) -> None:
    """Whole, or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    part.replace(file)


def _json(choice: Choice) -> dict[str, Any]:
    setting = None if choice.setting is None else asdict(choice.setting)
    return {"setting": setting, "stored": choice.stored.json(), "held_out_top1": choice.held_out_top1}


def _choice(found: dict[str, Any]) -> Choice:
    fields = found["setting"]
    setting: Setting = None
    if fields is not None:
        setting = TokenSetting(**fields) if "tokenizer" in fields else PixelSetting(**fields)
    return Choice(setting, Stored.of(found["stored"]), found["held_out_top1"])
