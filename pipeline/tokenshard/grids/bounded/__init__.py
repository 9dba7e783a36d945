"""The bounded layer of grids: tiles ⇄ bytes with a guaranteed largest error."""

from tokenshard.grids.bounded.bound import Bound
from tokenshard.grids.bounded.stream import EncodedTile, decode_tile, encode_tile

__all__ = ["Bound", "EncodedTile", "decode_tile", "encode_tile"]
