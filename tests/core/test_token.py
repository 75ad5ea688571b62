"""Tokens: only what `new_sid` and `new_secret` would make is one; all else is no session."""

from __future__ import annotations

import os
import string
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import sha256

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sojourn.core.token import (
    Token,
    drawn,
    hash_secret,
    is_sid,
    name_to_sid,
    new_secret,
    new_sid,
    parse_token,
)

ALPHABET = string.ascii_letters + string.digits + "-_"
SID = "AAAAAAAAAAAAAAAAAAAAAA"
SECRET = "BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBE"
GOOD = f"{SID}.{SECRET}"


def canonical(half: str) -> bool:
    """Tell the plain way whether an encoder would write it like that."""
    padded = half + "=" * (-len(half) % 4)
    return urlsafe_b64encode(urlsafe_b64decode(padded)).decode() == padded


def test_what_is_made_is_taken() -> None:
    """A thousand new tokens are parsed into what they were made of."""
    for _ in range(1000):
        sid, secret = new_sid(os.urandom), new_secret(os.urandom)

        assert parse_token(f"{sid}.{secret}") == Token(sid, secret)
        assert is_sid(sid)


@pytest.mark.parametrize("last", ALPHABET)
def test_only_the_canonical_last_character(last: str) -> None:
    """Of the spellings that decode to the same bytes only the encoder's own is taken."""
    sid, secret = SID[:-1] + last, SECRET[:-1] + last

    assert is_sid(sid) is canonical(sid)
    assert (parse_token(f"{sid}.{SECRET}") is not None) is canonical(sid)
    assert (parse_token(f"{SID}.{secret}") is not None) is canonical(secret)


MALFORMED = {
    "empty": "",
    "dot": ".",
    "null": "null",
    "None": "None",
    "sid alone": SID,
    "no secret": SID + ".",
    "no sid": "." + SECRET,
    "no dot": SID + SECRET,
    "two dots": f"{SID}..{SECRET[1:]}",
    "dot elsewhere": f"{SID[:-1]}.A{SECRET}",
    "swapped": f"{SECRET}.{SID}",
    "short": GOOD[:-1],
    "long": GOOD + "A",
    "twice": GOOD + GOOD,
    "newline at the end": GOOD + "\n",
    "newline for the last": GOOD[:-1] + "\n",
    "newline first": "\n" + GOOD[1:],
    "NUL": GOOD[:30] + "\0" + GOOD[31:],
    "space": " " + GOOD[1:],
    "quotes": f'"{GOOD}"',
    "padding": GOOD[:-2] + "==",
    "standard alphabet": GOOD.replace("BB", "+/", 1),
    "percent": GOOD[:-3] + "%41",
    "slash": "../" + GOOD[3:],
    "device": "CON" + ":" + GOOD[4:],
    "Arabic digits": "٠١٢" + GOOD[3:],
    "fullwidth": "Ａ" + GOOD[1:],
    "digit of another script": GOOD[:-2] + "४E",
    "long s": "ſ" + GOOD[1:],
    "Kelvin sign": "\u212a" + GOOD[1:],
    "latin-1": "é" + GOOD[1:],
    "lone surrogate": "\ud800" + GOOD[1:],
    "astral": "𝐀" + GOOD[1:],
    "NEL": GOOD + "\x85",
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
def test_malformed(text: str) -> None:
    """What is not exactly a token is none, and no exception."""
    assert parse_token(text) is None


@settings(max_examples=2000)
@given(
    st.one_of(
        st.text(max_size=100),
        st.binary(max_size=100).map(lambda raw: raw.decode("latin-1")),
        st.text(ALPHABET + ".", min_size=64, max_size=68),
        st.tuples(st.integers(0, 65), st.characters()).map(
            lambda change: GOOD[: change[0]] + change[1] + GOOD[change[0] + 1 :]
        ),
    )
)
@example(GOOD)
def test_any_text(text: str) -> None:
    """Of any text: it is a token if and only if an encoder would have written it."""
    sid, dot, secret = text[:22], text[22:23], text[23:]
    right = (
        len(text) == 66
        and dot == "."
        and not set(sid + secret) - set(ALPHABET)
        and canonical(sid)
        and canonical(secret)
    )

    assert (parse_token(text) is not None) is right


@pytest.mark.slow
def test_a_million_mutations() -> None:
    """Every single wrong character at every place, and many wrong pairs: none is taken."""
    wrong = [chr(code) for code in range(0x3000) if chr(code) not in ALPHABET]
    count = 0
    for place in range(66):
        head, tail = GOOD[:place], GOOD[place + 1 :]
        for char in wrong:
            if char == "." and place == 22:
                continue
            count += 1
            assert parse_token(head + char + tail) is None
    for length in range(400):
        if length != 66:
            for char in ALPHABET:
                count += 1
                assert parse_token(char * length) is None

    assert count > 800_000


def test_a_megabyte_costs_nothing() -> None:
    """A megabyte is refused by its length, a thousand times within a blink."""
    text = GOOD * 16_000
    start = time.perf_counter()

    found = [parse_token(text) for _ in range(1000)]

    assert not any(found)
    assert time.perf_counter() - start < 0.5


def test_t1_unique_and_even() -> None:
    """T1: of 100,000 sids and secrets none is equal, and each bit is set in half of them."""
    count = 100_000
    for make, size in ((new_sid, 16), (new_secret, 32)):
        made = {make(os.urandom) for _ in range(count)}
        assert len(made) == count
        bits = [0] * (8 * size)
        for text in made:
            number = int.from_bytes(urlsafe_b64decode(text + "=="))
            for place in range(8 * size):
                bits[place] += number >> place & 1
        # 6.5 standard deviations: once in thirty million runs by chance.
        assert all(abs(ones - count / 2) < 6.5 * (count / 4) ** 0.5 for ones in bits)


@pytest.mark.parametrize("size", [0, 1, 15, 17, 31, 33])
def test_t1_a_source_that_gives_too_little(size: int) -> None:
    """T1: bytes too few or too many are an error, not a shorter secret."""
    for make in (new_sid, new_secret):
        with pytest.raises(ValueError, match=f"gave {size} bytes"):
            make(lambda _: bytes(size))


def test_t1_a_source_that_raises() -> None:
    """T1: where there is no randomness there is no session, and no weaker source is tried."""

    def broken(size: int) -> bytes:
        raise OSError("no randomness")

    for make in (new_sid, new_secret, lambda entropy: drawn(entropy, 8)):
        with pytest.raises(OSError, match="no randomness"):
            make(broken)


def test_only_the_hash_is_kept() -> None:
    """What a store may know is the SHA-256 of the secret's characters."""
    assert hash_secret(SECRET) == sha256(SECRET.encode()).digest()


def test_names_of_marks() -> None:
    """Any name, also an odd one, becomes a sid of the usual spelling; other names, other sids."""
    names = ["", "user:a", "user:A", "user:\u00e4", "user:a\u0308", "user:\ud800", "user:a\0"]

    sids = [name_to_sid(name) for name in names]

    assert all(map(is_sid, sids))
    assert len(set(sids)) == len(names)


def test_repr_hides_the_secret() -> None:
    """A token may land in a log: its repr shows the sid alone; str is the cookie's value."""
    token = Token(SID, SECRET)

    assert SECRET not in repr(token)
    assert SID in repr(token)
    assert str(token) == GOOD
