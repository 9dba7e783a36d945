"""The loaders of the benchmark, by the name of their row."""

from __future__ import annotations

from feeding.beton import Ffcv
from feeding.maps import Grain, Memmap, TorchdataNodes, TorchdataStateful
from feeding.ours import Context, Order0, Pack
from feeding.peer import Peer
from feeding.streams import LitData, LitDataTokens, Mosaic, MosaicWorkers, WebDataset
from feeding.tables import GrainParquet, HfArrow, HfStreaming, Lance, RayData

PEERS: dict[str, type[Peer]] = {
    "memmap": Memmap,
    "tokenshard pack": Pack,
    "tokenshard order-0": Order0,
    "tokenshard context": Context,
    "torchdata nodes": TorchdataNodes,
    "ffcv": Ffcv,
    "torchdata stateful": TorchdataStateful,
    "grain": Grain,
    "grain parquet": GrainParquet,
    "litdata tokens": LitDataTokens,
    "litdata": LitData,
    "mosaic": Mosaic,
    "mosaic, 2 workers": MosaicWorkers,
    "webdataset": WebDataset,
    "hf arrow": HfArrow,
    "hf streaming": HfStreaming,
    "lance": Lance,
    "ray data": RayData,
}
