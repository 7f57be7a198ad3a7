"""Strategies that spoil valid documents: bytes flipped, cut, repeated, taken from another one; numbers and words replaced."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

__all__ = ["EXTREMES", "json_values", "mutated", "odd_json"]

_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
EXTREMES = (
    b"0", b"-0", b"-1", b"1e9", b"1e308", b"-1e308", b"1e-308", b"1e999", b"NaN", b"Infinity", b"nan", b"inf", b"2147483648", b"4294967296",
    b"9223372036854775808", b"1" + b"0" * 400, b"9" * 5000, b"0.1", b"1,5", b"0x10", b"1_000", "٣".encode(),
)  # fmt: skip
_INTEGERS = (0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 33, (1 << 63) - 1,
             1 << 63, (1 << 64) - 1)  # fmt: skip


@st.composite
def mutated(draw: DrawFn, seeds: Sequence[bytes], words: Sequence[bytes] = (), most: int = 6) -> bytes:
    """Spoil one of some valid documents in up to so many places; words are put in here and there."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, most))):
        how = draw(st.sampled_from(_WAYS if words else _WAYS[:-1]))
        data = how(draw, data, seeds, words)
    return data


def _place(draw: DrawFn, data: bytes) -> int:
    return draw(st.integers(0, max(0, len(data) - 1)))


def _flip(draw: DrawFn, data: bytes, *_: Any) -> bytes:
    at, spoilt = _place(draw, data), bytearray(data)
    for i in range(at, min(len(data), at + draw(st.sampled_from((1, 1, 1, 4, 40))))):
        spoilt[i] ^= draw(st.integers(1, 255))
    return bytes(spoilt)


def _cut(draw: DrawFn, data: bytes, *_: Any) -> bytes:
    return data[: _place(draw, data)]


def _drop(draw: DrawFn, data: bytes, *_: Any) -> bytes:
    at = _place(draw, data)
    return data[:at] + data[at + draw(st.integers(1, 64)) :]


def _repeat(draw: DrawFn, data: bytes, *_: Any) -> bytes:
    at, n = _place(draw, data), draw(st.integers(1, 200))
    return data[:at] + data[at : at + n] * draw(st.sampled_from((2, 3, 50))) + data[at + n :]


def _splice(draw: DrawFn, data: bytes, seeds: Sequence[bytes], _: Any) -> bytes:
    other = draw(st.sampled_from(seeds))
    a, b = _place(draw, other), draw(st.integers(1, 400))
    at = _place(draw, data)
    return data[:at] + other[a : a + b] + data[at + draw(st.sampled_from((0, b))) :]


def _number(draw: DrawFn, data: bytes, *_: Any) -> bytes:
    found = list(_NUMBER.finditer(data, 0, min(len(data), 1 << 16)))
    if not found:
        return data
    one = draw(st.sampled_from(found))
    return data[: one.start()] + draw(st.sampled_from(EXTREMES)) + data[one.end() :]


def _integer(draw: DrawFn, data: bytes, *_: Any) -> bytes:
    at, n = _place(draw, data), draw(st.sampled_from((2, 4, 8)))
    value = draw(st.sampled_from(_INTEGERS)) & ((1 << 8 * n) - 1)
    return data[:at] + value.to_bytes(n, draw(st.sampled_from(("little", "big")))) + data[at + n :]


def _word(draw: DrawFn, data: bytes, _: Any, words: Sequence[bytes]) -> bytes:
    at = _place(draw, data)
    return data[:at] + draw(st.sampled_from(words)) + data[at + draw(st.sampled_from((0, 1, 5))) :]


_WAYS = (_flip, _flip, _cut, _drop, _repeat, _splice, _number, _number, _integer, _word)


def odd_json() -> SearchStrategy[Any]:
    """Values of JSON that a program may stumble over."""
    numbers = st.one_of(st.integers(-(10**6), 10**6), st.sampled_from((0, -1, 2**31, 2**63, 10**400, 1e308, -1e308, 0.5, float("nan"), float("inf"))))
    texts = st.sampled_from(("", "a", "Polygon", "Infinity", "../..", "\ud800", "\0", "x" * 5000, "ß", "1e5"))
    return st.one_of(st.none(), st.booleans(), numbers, texts, st.just([]), st.just({}), st.just([[]]), st.just({"": {}}))


def json_values(keys: Sequence[str]) -> SearchStrategy[Any]:
    """Nested values of JSON whose keys are among some."""
    return st.recursive(
        odd_json(), lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(keys), inner, max_size=4)), max_leaves=12
    )
