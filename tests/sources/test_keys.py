"""Keys stay unique and valid text, whatever the inputs are called."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from tokenshard.sources.keys import UniqueKeys, escape_name, unescape_name

file_names = st.one_of(
    st.binary(max_size=20).map(os.fsdecode),
    st.lists(st.sampled_from(["%", "25", "E9", "e9", "A", "\udce9", "é"]), max_size=8).map("".join),
)


@given(file_names)
def test_an_escaped_name_is_valid_text_and_gives_the_name_back(name: str) -> None:
    escaped = escape_name(name)
    escaped.encode("utf-8")
    assert unescape_name(escaped) == name


def test_valid_names_stay_as_they_are_and_undecodable_bytes_become_percent_codes() -> None:
    assert escape_name("100% ünïcödé 画像 😀.jpg") == "100% ünïcödé 画像 😀.jpg"
    assert escape_name(os.fsdecode(b"caf\xe9.jpg")) == "caf%E9.jpg"
    assert escape_name("caf%E9.jpg") == "caf%25E9.jpg"


@given(st.lists(st.sampled_from(["a", "a#2", "a#3", "b"]), max_size=30))
def test_repeated_keys_are_renamed_and_no_key_is_handed_out_twice(keys: list[str]) -> None:
    registry = UniqueKeys()
    half = len(keys) // 2
    first, first_repeats = registry.assign(keys[:half])
    second, second_repeats = registry.assign(keys[half:])
    unique, repeats = first + second, first_repeats + second_repeats
    assert len(set(unique)) == len(keys)
    for key, given_key, repeated in zip(keys, unique, repeats, strict=True):
        assert given_key.startswith(f"{key}#") if repeated else given_key == key


def test_the_second_occurrence_of_a_key_is_numbered_two() -> None:
    assert UniqueKeys().assign(["x", "x", "x"]) == (["x", "x#2", "x#3"], [False, True, True])
