"""The key set finds every repeated key, whatever the batches."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenshard.shards.keys import KeySet


@given(st.lists(st.lists(st.text(max_size=3), max_size=30), max_size=12))
def test_exactly_the_keys_seen_before_are_marked(batches) -> None:
    keys, known = KeySet(), set()
    for batch in batches:
        marks = keys.add(batch)
        for key, seen in zip(batch, marks.tolist(), strict=True):
            assert seen == (key in known)
            known.add(key)
    assert len(keys) == len(known)


def test_a_million_keys_take_eight_bytes_each() -> None:
    keys = KeySet()
    for start in range(0, 1_000_000, 10_000):
        assert not keys.add([f"{n}" for n in range(start, start + 10_000)]).any()
    assert keys.add(["0", "999999", "1000000"]).tolist() == [True, True, False]
    assert len(keys) == 1_000_001
    assert keys.nbytes == 8 * 1_000_001
