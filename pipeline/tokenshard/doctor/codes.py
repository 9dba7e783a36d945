"""Looks at what turns inputs into bytes here: compiled loops, every codec, and that ids do not depend on the batch."""

from __future__ import annotations

from functools import partial
from typing import get_args

import numpy as np

from tokenshard.codecs import pack_kernels
from tokenshard.codecs.base import sample_sizes
from tokenshard.codecs.choose import choose_codec, load_codec
from tokenshard.compiled import REMEDY, cache_folder
from tokenshard.doctor.check import Check, Finding
from tokenshard.errors import FormatError
from tokenshard.extensions import CODECS, extensions
from tokenshard.spec.codec import CodecName
from tokenshard.tokenizers.patch import PatchTokenizer

ALPHABET = 128
_REPAIR = "repair or remove the package that adds it"
_REINSTALL = "reinstall numba, numpy and zstandard: pip install --force-reinstall tokenshard"


def code_checks() -> list[Check]:
    """Codecs one by one, then the compiled loops that they used, then a tokenizer."""
    codecs = [Check(f"codec {name}", partial(_codec, name), _REINSTALL) for name in get_args(CodecName)]
    codecs += [Check(f"codec {name}", partial(_codec, name), _REPAIR) for name in extensions(CODECS)]
    tokenizer = Check("determinism", _determinism, "reinstall torch and numpy, and tell us: ids must not differ")
    return [*codecs, Check("compiled loops", _loops, REMEDY), tokenizer]


def _codec(name: str) -> Finding:
    """Encode and decode clips, whole and one sample alone, through the file of the model where there is one."""
    draw = np.random.default_rng(0)
    grids = np.full((12, 3), (3, 5, 6), np.int32)
    sizes = sample_sizes(grids)
    ids = np.minimum(draw.geometric(0.05, int(sizes.sum())), ALPHABET - 1).astype(np.uint16)
    if name == "multiset":  # keeps how often each id occurs in a sample, not where
        ids = np.sort(ids.reshape(len(grids), -1), axis=1).ravel()
    chosen = choose_codec(ids, grids, ALPHABET, name)
    codec, spec = chosen.codec, chosen.spec("codes")
    data, lengths = codec.encode(ids, grids)
    again = load_codec(spec, codec.model_bytes()).decode(data, lengths, grids)
    if not (again == ids).all():
        raise FormatError("decoded ids differ from those that were encoded")
    return Finding("ok", f"{len(ids):,} ids in {len(data):,} bytes and back")


def _loops() -> Finding:
    folder = cache_folder(pack_kernels.pack)
    if folder is None:
        return Finding("note", "work, but cannot be kept on disk: every process compiles them again", REMEDY)
    return Finding("ok", f"kept in {folder}")


def _determinism() -> Finding:
    """One image alone, in a batch, and by a tokenizer that was fitted once more, has the same ids."""
    draw = np.random.default_rng(1)
    steps = draw.integers(-9, 10, (6, 32, 32, 3)).cumsum(1).cumsum(2)
    images = (128 + steps // 4).clip(0, 255).astype(np.uint8)
    first, second = (PatchTokenizer.fit(list(images), 0, patch=(4, 4), k=64) for _ in range(2))
    whole = first.encode(images)
    alone = np.concatenate([first.encode(images[number : number + 1]) for number in range(len(images))])
    if not (whole == alone).all():
        raise FormatError("ids of an image depend on the batch it is encoded in")
    if first.spec.fingerprint != second.spec.fingerprint or not (second.encode(images) == whole).all():
        raise FormatError("a tokenizer fitted twice on the same images is not the same")
    return Finding("ok", f"{whole.size:,} ids are the same in any batch and after fitting again")
