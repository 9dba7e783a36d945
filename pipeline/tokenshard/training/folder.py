"""A trained model as a folder: weights, configuration, card, the hashes of what it learned from, and its tokenizer.

Everything is JSON, Markdown and safetensors. What is read back is checked before it is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch
from pydantic import Field, JsonValue, ValidationError
from torch import Tensor, nn

from tokenshard.errors import FormatError, SpecError
from tokenshard.readable import counted
from tokenshard.shards.dataset import Dataset
from tokenshard.spec.base import StoredDocument
from tokenshard.store import Store
from tokenshard.tokenizers.base import Tokenizer
from tokenshard.tokenizers.folder import load_tokenizer, save_tokenizer, tokenizer_from
from tokenshard.training.models.adapter import SCALE, AdapterConfig, TokenAdapter
from tokenshard.training.models.classifier import ClassifierConfig, TokenClassifier
from tokenshard.training.models.masked import MaskedConfig, MaskedModel
from tokenshard.training.models.upscaler import Upscaler, UpscalerConfig
from tokenshard.training.models.vit import EncoderConfig, TokenEncoder

CONFIG, WEIGHTS, CARD, SHARDS = "config.json", "model.safetensors", "README.md", "shards.json"
FORMAT = "tokenshard-model"
FORMAT_VERSION = 1
USES = {
    "classifier": "tokenshard predict . IMAGES",
    "mtm": "tokenshard probe . --data TOKENS --val VAL",
    "adapt": "tokenshard train classifier --data TOKENS OUT --adapt .",
    "grid-sr": "tokenshard.training.grid_sr.upscaled(load_model(Store('.')).module, heights)",
}
"""By kind, what a model is for."""
MAX_CONFIG_BYTES = 1 << 24
MAX_WEIGHTS_BYTES = 1 << 36


class ModelDocument(StoredDocument):
    """`config.json` of a model folder."""

    format: str = FORMAT
    format_version: int = FORMAT_VERSION
    kind: str = Field(description="classifier, mtm, adapt or grid-sr")
    model: dict[str, JsonValue] = Field(description="what decides the shapes of the weights")
    tokenizer: str = Field(description="fingerprint of the tokenizer whose ids it reads")
    label: str | None = Field(default=None, description="column it learned the classes from")
    names: tuple[str, ...] | None = Field(default=None, description="class names")
    preprocess: dict[str, JsonValue] = Field(default_factory=dict, description="of raw images, before the tokenizer")
    metrics: dict[str, JsonValue] = Field(default_factory=dict, description="at the end of training")
    job: dict[str, JsonValue] = Field(default_factory=dict, description="what decided the weights")
    weights_sha256: str = ""

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the weights."""
        return self.weights_sha256[:16]


@dataclass(frozen=True)
class TrainedModel:
    """A model that was read from its folder, on the CPU and in evaluation mode."""

    store: Store
    document: ModelDocument
    module: nn.Module

    @property
    def encoder(self) -> TokenEncoder:
        """Raises SpecError for models that have none."""
        if isinstance(self.module, TokenAdapter):
            raise SpecError(
                f"{self.store.root}: holds an adapter, which is for --adapt; give the folder of a classifier or mtm"
            )
        if isinstance(self.module, Upscaler):
            raise SpecError(f"{self.store.root}: holds an upscaler of grids; give the folder of a classifier or mtm")
        encoder = self.module.encoder
        assert isinstance(encoder, TokenEncoder)
        return encoder

    def tokenizer(self) -> Tokenizer:
        """Its own copy of the tokenizer."""
        return load_tokenizer(self.store, "tokenizer")

    def check_reads(self, dataset: Dataset) -> None:
        """Raises SpecError where the ids of a dataset are not those the model learned."""
        mine, other = self.document.tokenizer, dataset.manifest.tokenizer.fingerprint
        if mine != other:
            raise SpecError(
                f"{dataset.store.root}: holds ids of tokenizer {other}, {self.store.root} reads those of {mine}; "
                f"convert with --tokenizer {self.store.url('tokenizer')}"
            )


def save_model(
    output: Store,
    document: ModelDocument,
    module: nn.Module,
    datasets: dict[str, Dataset],
    adapter: TrainedModel | None = None,
    half: bool = False,
) -> ModelDocument:
    """Write a model folder, `config.json` last. ``datasets`` by their part: train, val; ``adapter``: what augmented;
    ``half``: weights are stored as float16."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    if half:
        tensors = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    weights = safetensors.torch.save(tensors)
    document = document.model_copy(update={"weights_sha256": hashlib.sha256(weights).hexdigest()})
    output.put(WEIGHTS, weights)
    save_tokenizer(tokenizer_from(*datasets["train"].tokenizer_files()), output, "tokenizer")
    learned_from = [_hashes(part, dataset) for part, dataset in datasets.items()]
    used = {} if adapter is None else {"adapter": _adapter(adapter)}
    output.put(SHARDS, json.dumps({"datasets": learned_from, **used}, indent=1).encode())
    parameters = sum(tensor.numel() for tensor in tensors.values())
    output.put(CARD, _card(document, learned_from, parameters, len(weights), adapter).encode())
    output.put(CONFIG, json.dumps(document.model_dump(mode="json"), indent=1).encode())
    return document


def _hashes(part: str, dataset: Dataset) -> dict[str, Any]:
    manifest = dataset.manifest
    return {
        "part": part,
        "url": dataset.store.root,
        "version": manifest.version,
        "fingerprint": manifest.fingerprint,
        "samples": manifest.num_samples,
        "bytes": manifest.totals.token_bytes,
        "shards": [{"path": shard.path, "sha256": shard.sha256} for shard in manifest.shards],
    }


def _adapter(adapter: TrainedModel) -> dict[str, Any]:
    """What of an adapter counts as stored beside the shards."""
    sha256, size = adapter.document.weights_sha256, adapter.store.size(WEIGHTS)
    return {"url": adapter.store.root, "sha256": sha256, "bytes": size}


def _card(
    document: ModelDocument,
    datasets: Sequence[dict[str, Any]],
    parameters: int,
    size: int,
    adapter: TrainedModel | None,
) -> str:
    """A model card as hubs show it: YAML with the figures, then text."""
    figures = "\n".join(f"- {name}: {value}" for name, value in document.metrics.items())
    sets = "\n".join(
        f"- {entry['part']}: {counted(entry['samples'], 'sample')} in {counted(len(entry['shards']), 'shard')}, "
        f"{counted(entry['bytes'], 'byte')}, "
        f"fingerprint `{entry['fingerprint'][:16]}`"
        for entry in datasets
    )
    if adapter is not None:
        entry = _adapter(adapter)
        sets += f"\n- adapter: {entry['bytes']:,} bytes, SHA-256 `{entry['sha256'][:16]}`"
    use = USES[document.kind]
    return (
        f"---\nlibrary_name: tokenshard\ntags: [tokens, {document.kind}]\n---\n\n"
        f"# {document.kind} on image tokens\n\n{parameters:,} weights in {size:,} bytes, trained from token shards by "
        f"tokenshard; tokenizer `{document.tokenizer}` (in `tokenizer/`).\n\n    {use}\n\n"
        f"## Learned from\n\n{sets}\n\nThe SHA-256 of every shard is in `{SHARDS}`; all options are in `{CONFIG}`.\n\n"
        f"## Figures at the end of training\n\n{figures}\n"
    )


def is_model(store: Store) -> bool:
    return store.exists(CONFIG)


def read_document(store: Store) -> ModelDocument:
    """`config.json`. Raises SpecError where there is no model, FormatError where it is damaged or too new."""
    url = store.url(CONFIG)
    if not store.exists(CONFIG):
        raise SpecError(
            f"{store.root}: no trained model here (no {CONFIG}); give the folder `tokenshard train` wrote to"
        )
    try:
        if store.size(CONFIG) > MAX_CONFIG_BYTES:
            raise ValueError(f"larger than {MAX_CONFIG_BYTES} bytes")
        found = json.loads(store.read(CONFIG))
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError(f"format is not {FORMAT!r}")
        if not isinstance(found.get("format_version"), int) or found["format_version"] > FORMAT_VERSION:
            raise ValueError(f"format version {found.get('format_version')} needs a newer tokenshard")
        return ModelDocument.model_validate(found)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{url}: not the configuration of a model ({_first(error)})") from error


def load_model(store: Store, kind: str | None = None) -> TrainedModel:
    """The model in a folder. Raises SpecError for another ``kind``, FormatError where it is damaged."""
    document = read_document(store)
    if kind is not None and document.kind != kind:
        raise SpecError(f"{store.root}: holds a model of kind {document.kind!r}; a {kind!r} one is needed")
    url = store.url(WEIGHTS)
    try:
        if store.size(WEIGHTS) > MAX_WEIGHTS_BYTES:
            raise FormatError(f"{url}: larger than the {MAX_WEIGHTS_BYTES} bytes allowed")
        data = store.read(WEIGHTS)
    except FileNotFoundError as error:
        raise FormatError(f"{url}: no such file; copy the model folder again") from error
    if hashlib.sha256(data).hexdigest() != document.weights_sha256:
        raise FormatError(
            f"{url}: SHA-256 differs from {CONFIG}; it is damaged or belongs to another model: copy it again"
        )
    try:
        module = _module(document, safetensors.torch.load(data))
    except (ValueError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
        raise FormatError(f"{url}: weights and {CONFIG} do not fit each other ({_first(error)})") from error
    return TrainedModel(store, document, module.eval().requires_grad_(False))


def _module(document: ModelDocument, tensors: dict[str, Tensor]) -> nn.Module:
    module: nn.Module
    if document.kind == "classifier":
        config = ClassifierConfig.model_validate(document.model)
        _check_sizes(config.encoder, tensors)
        module = TokenClassifier(config)
    elif document.kind == "mtm":
        masked = MaskedConfig.model_validate(document.model)
        _check_sizes(masked.encoder, tensors)
        levels = range(len(masked.encoder.alphabets) if masked.head in ("two-level", "vq-logits") else 0)
        clusters = tuple(tensors[f"head.levels.{level}.cluster"] for level in levels)
        if any(int(one.min()) < 0 or int(one.max()) >= len(one) for one in clusters):
            raise ValueError("clusters are numbered beyond the codes")
        module = MaskedModel(masked, clusters)
    elif document.kind == "adapt":
        adapter = AdapterConfig.model_validate(document.model)
        _check_adapter(adapter, tensors)
        module = TokenAdapter(adapter)
    elif document.kind == "grid-sr":
        upscaler = UpscalerConfig.model_validate(document.model)
        _check_upscaler(upscaler, tensors)
        module = Upscaler(upscaler)
    else:
        raise ValueError(f"kind {document.kind!r} is unknown; a newer tokenshard may be needed")
    module.load_state_dict(tensors)
    return module


def _check_sizes(config: EncoderConfig, tensors: dict[str, Tensor]) -> None:
    """What the configuration asks for is not larger than what the file holds, before any of it is made."""
    depth = len({name.split(".")[2] for name in tensors if name.startswith("encoder.blocks.")})
    table, stem = tensors["encoder.embedding.table"].shape, tensors["encoder.stem.weight"].shape
    if table != torch.Size([sum(config.alphabets), config.dim]) or depth != config.depth or stem[0] != config.width:
        raise ValueError(f"an encoder of {depth} blocks and width {stem[0]} with codes {list(table)}")


def _check_adapter(config: AdapterConfig, tensors: dict[str, Tensor]) -> None:
    """The same for an adapter."""
    depth = len({name.split(".")[1] for name in tensors if name.startswith("before.")})
    table, cells = tensors["embedding.table"].shape, tensors["from_map.weight"].shape
    wanted = torch.Size([config.width, config.channels * SCALE**2])
    if table != torch.Size([sum(config.alphabets), config.dim]) or depth != config.depth or cells != wanted:
        raise ValueError(f"an adapter of {depth} blocks and map {list(cells)} with codes {list(table)}")


def _check_upscaler(config: UpscalerConfig, tensors: dict[str, Tensor]) -> None:
    """The same for an upscaler."""
    layers = [tensor for name, tensor in tensors.items() if name.startswith("layers.")]
    if len(layers) != config.depth or (config.depth > 1 and max(len(layer) for layer in layers) != config.width):
        raise ValueError(f"an upscaler of {len(layers)} convolutions")


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error).splitlines()[0]
