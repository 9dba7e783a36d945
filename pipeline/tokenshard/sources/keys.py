"""Keys of inputs: kept unique over any number of inputs in little memory, and always valid text.

Planning passes every key through here, so that no key occurs twice in a dataset.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenshard.shards.keys import KeySet

_AMBIGUOUS = re.compile(r"%(?=25|[89A-F][0-9A-F])")
_UNDECODABLE = re.compile("[\udc80-\udcff]")
_ESCAPED = re.compile(r"%(25|[89A-F][0-9A-F])")


class UniqueKeys:
    """Hands out keys that are unique.

    A key that repeats one of another container becomes ``container/key`` and is as good as any; every other repeated
    ``key`` becomes ``key#2``, ``key#3``, … and is marked.
    """

    def __init__(self) -> None:
        self._known = KeySet()
        self._repeats: dict[str, int] = {}

    def assign(self, keys: Sequence[str], containers: Sequence[str | None] = ()) -> tuple[list[str], list[bool]]:
        """(unique keys, whether each repeats an earlier key). ``containers``: where each key needs only be unique."""
        unique, repeated = list(keys), self._known.add(keys).tolist()
        for place, again in enumerate(repeated):
            if not again:
                continue
            container = containers[place] if containers else None
            qualified = f"{container}/{keys[place]}"
            if container is not None and not self._known.add([qualified])[0]:
                unique[place], repeated[place] = qualified, False
            else:
                unique[place] = self._renamed(keys[place])
        return unique, repeated

    def _renamed(self, key: str) -> str:
        number = self._repeats.get(key, 1) + 1
        while self._known.add([f"{key}#{number}"])[0]:
            number += 1
        self._repeats[key] = number
        return f"{key}#{number}"


def escape_name(name: str) -> str:
    """A file name as valid text: bytes that are no UTF-8 become ``%XX`` (and a ``%`` that looks like one ``%25``)."""
    if name.isascii() and "%" not in name:
        return name
    text = _AMBIGUOUS.sub("%25", name)
    return _UNDECODABLE.sub(lambda found: f"%{ord(found[0]) - 0xDC00:02X}", text)


def unescape_name(text: str) -> str:
    """The file name that :func:`escape_name` made ``text`` of."""
    return _ESCAPED.sub(lambda found: "%" if found[1] == "25" else chr(0xDC00 + int(found[1], 16)), text)
