"""`hf:FOLDER`: a local checkpoint of the transformers library, as `save_pretrained` wrote it. Nothing is downloaded.

ColPali, ColQwen2 and ColQwen2.5, and ColModernVBERT encode page images; any other encoder of text gives token states,
as `minilm` does. No code of a checkpoint is run, and only safetensors are read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenshard.errors import SpecError
from tokenshard.retrieval.encoders.base import PageEncoder
from tokenshard.retrieval.encoders.tokens import GRID, States, TokenEncoder
from tokenshard.spec.documents import EncoderSpec

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
DIMENSIONS = 128
_BATCH = 16
_LICENCE = re.compile(r"^license:\s*(\S+)\s*$", re.MULTILINE)


def open_transformers(folder: str, device: str, numerics: str) -> PageEncoder:
    """The encoder of a checkpoint. Raises SpecError where there is none, or transformers cannot load it."""
    from tokenshard.retrieval.encoders.vision import MODELS, VisionEncoder

    path = Path(folder)
    if numerics not in PRECISIONS:
        raise SpecError(f"hf:{folder}: {numerics} is no mode of it; choose one of {', '.join(PRECISIONS)}")
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(f"hf:{folder}: no config.json there; expected a folder that save_pretrained wrote") from error
    if config.get("model_type") in MODELS:
        return VisionEncoder(path, str(config["model_type"]), device, numerics)
    return TransformersText(path, device, numerics)


class TransformersText(TokenEncoder):
    """Token states of an encoder of text, reduced to at most 128 dimensions."""

    name = "hf"

    def __init__(self, folder: Path, device: str, numerics: str) -> None:
        transformers = imported(folder)
        model = loaded(folder, transformers.AutoModel, device, numerics)
        tokenizer = loaded(folder, transformers.AutoTokenizer)
        if not tokenizer.is_fast:
            raise SpecError(f"hf:{folder}: its tokenizer has no tokenizer.json; save it as a fast tokenizer")
        width = int(model.config.hidden_size)
        longest = min(int(getattr(model.config, "max_position_embeddings", 512)), 512)
        spec = checkpoint_spec(folder, "text", min(DIMENSIONS, width), (GRID, GRID), numerics)
        backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
        super().__init__(spec, backend, width, longest, 1 if device == "cpu" else _BATCH)
        self._model, self._device = model, device

    @torch.inference_mode()
    def _states(self, ids: NDArray[np.int64]) -> list[States]:
        tokens = torch.from_numpy(ids).to(self._device)
        found = self._model(input_ids=tokens, attention_mask=torch.ones_like(tokens), output_attentions=True)
        received = found.attentions[-1].float().mean((1, 2)) * ids.shape[1]  # [B, heads, n, n] -> [B, n]
        states = found.last_hidden_state.float().cpu().numpy()
        return list(zip(states, received.cpu().numpy(), strict=True))


def imported(folder: Path) -> Any:
    """The transformers library, without bars of its own."""
    try:
        import transformers
    except ImportError as error:
        raise SpecError(f"hf:{folder}: reading it needs pip install 'tokenshard[documents]'") from error
    library: Any = transformers
    library.utils.logging.disable_progress_bar()
    return library


def loaded(folder: Path, cls: Any, device: str | None = None, numerics: str = "fp32") -> Any:
    """What a class makes of a checkpoint: a model ready on ``device``, or (None) a tokenizer or processor.

    Raises SpecError where transformers cannot load it.
    """
    options: dict[str, Any] = {"local_files_only": True}
    if device is not None:
        options |= {"use_safetensors": True, "dtype": PRECISIONS[numerics], "attn_implementation": "eager"}
    try:
        found = cls.from_pretrained(folder, **options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise SpecError(f"hf:{folder}: transformers cannot load it: {reason}") from error
    return found if device is None else found.eval().to(device)


def checkpoint_spec(
    folder: Path, reads: Any, dimensions: int, grid: tuple[int, int] | None, numerics: str
) -> EncoderSpec:
    """Description of an encoder from a checkpoint."""
    return EncoderSpec(
        name=f"hf:{folder}",
        reads=reads,
        dimensions=dimensions,
        grid=grid,
        numerics=numerics,
        weights_sha256=_hashed(sorted(folder.glob("*.safetensors"))),
        weight_licence=_licence(folder / "README.md"),
    )


def _hashed(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _licence(card: Path) -> str:
    """As the model card states it."""
    found = _LICENCE.search(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else None
    return found[1] if found else "unknown"
