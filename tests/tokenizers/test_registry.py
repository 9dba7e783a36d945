"""How users name tokenizers: kind, options, and what they are told when they get it wrong."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tokenshard.errors import SpecError
from tokenshard.tokenizers.registry import KINDS, parse_tokenizer, tokenizer_class, trainable_class


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("patch", {}),
        ("patch:4x4", {"patch": (4, 4)}),
        ("patch:8", {"patch": (8, 8)}),
        ("patch:4x4,k=1024,components=16", {"patch": (4, 4), "k": 1024, "components": 16}),
        ("patch:k=256", {"k": 256}),
        ("patch:k=256,patch=2x8", {"patch": (2, 8), "k": 256}),
    ],
)
def test_a_tokenizer_is_named_by_its_kind_and_options(text: str, options: dict[str, Any]) -> None:
    assert parse_tokenizer(text) == ("patch", options)


def test_the_example_of_every_kind_parses_and_its_class_is_there() -> None:
    for kind, entry in KINDS.items():
        assert parse_tokenizer(entry.example)[0] == kind
        assert tokenizer_class(kind).__name__ in entry.path


def test_parsed_options_are_those_fit_takes(crops: NDArray[np.uint8]) -> None:
    kind, options = parse_tokenizer("patch:8x4,k=20,components=3")
    spec = trainable_class(kind).fit(list(crops), 0, **options).spec
    assert (spec.levels, spec.downsample, spec.config["components"]) == ((20,), (8, 4), 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pach", "unknown tokenizer 'pach' .did you mean 'patch'.*use one of: patch .*folder of a saved tokenizer"),
        ("", "unknown tokenizer ''"),
        ("patch:4y4", "patch must be HEIGHTxWIDTH in pixels, each 1 to 16, not '4y4'"),
        ("patch:4x", "HEIGHTxWIDTH"),
        ("patch:17x4", "HEIGHTxWIDTH"),
        ("patch:k=0", "k must be a whole number from 1 to 65536, not '0'"),
        ("patch:k=65537", "whole number"),
        ("patch:k=1e3", "whole number"),
        ("patch:k=²", "whole number"),
        ("patch:k=-4", "whole number"),
        ("patch:k=", "whole number"),
        ("patch:kk=4", "unknown option 'kk=4'; options of patch: patch, k, components"),
        ("patch:4x4,256", "unknown option '256'"),
        ("patch:4x4,", "unknown option ''"),
        ("patch:k=4,k=5", "'k' is given twice"),
    ],
)
def test_mistakes_are_answered_with_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_tokenizer(text)


def test_parsing_imports_no_tokenizer() -> None:
    check = (
        "import sys, tokenshard.tokenizers.registry as r; r.parse_tokenizer('patch:4x4'); print('numba' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
