"""The colours of the demo can be told apart by everybody."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

CSS = files("sojourn.cli.demo").joinpath("static", "demo.css").read_text()

# What is written on what; 4.5 to 1 is WCAG 2.2 AA for text of any size (1.4.3).
TEXT = [
    ("ink", "ground"),
    ("ink", "surface"),
    ("quiet", "ground"),
    ("quiet", "surface"),
    ("accent", "ground"),
    ("accent", "surface"),
    ("accent-hover", "ground"),
    ("accent-hover", "surface"),
    ("on-accent", "accent"),
    ("on-accent", "accent-hover"),
    ("notice-ink", "notice"),
    ("message-ink", "message"),
]
# Edges of fields and buttons, and the focus ring; 3 to 1 (1.4.11).
EDGES = [("edge", "ground"), ("edge", "surface"), ("accent", "notice"), ("accent", "ground")]


def colours(scheme: str) -> dict[str, tuple[int, int, int]]:
    """The colours of the light or the dark scheme, by name."""
    blocks = re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)
    found: dict[str, tuple[int, int, int]] = {}
    for block in blocks[: {"light": 1, "dark": 2}[scheme]]:
        for name, value in re.findall(r"--([\w-]+): #([0-9a-f]{6});", block):
            found[name] = tuple(bytes.fromhex(value))
    return found


def luminance(colour: tuple[int, int, int]) -> float:
    """Relative luminance, by WCAG 2.2."""
    shares = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in (byte / 255 for byte in colour)
    ]
    return 0.2126 * shares[0] + 0.7152 * shares[1] + 0.0722 * shares[2]


def contrast(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    darker, lighter = sorted([luminance(one), luminance(other)])
    return (lighter + 0.05) / (darker + 0.05)


def test_contrast_is_measured_right() -> None:
    """Black on white is 21 to 1, and grey #767676 on white is known to just pass."""
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((0x76,) * 3, (255,) * 3) == pytest.approx(4.54, abs=0.01)
    assert colours("light") != colours("dark")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(scheme: str) -> None:
    """Text and edges stand out from what they are on, in both schemes."""
    found = colours(scheme)
    pairs = [(*pair, 4.5) for pair in TEXT] + [(*pair, 3.0) for pair in EDGES]
    faults = {
        f"{one} on {other}": round(ratio, 2)
        for one, other, least in pairs
        if (ratio := contrast(found[one], found[other])) < least
    }

    assert not faults


def test_colours_are_named_once() -> None:
    """No rule has a colour of its own, which the test above would not see."""
    rules = re.sub(r":root \{.*?\}", "", CSS, flags=re.DOTALL)

    assert re.findall(r":[^:;{}]*var\(--accent\)[^;{}]*;", rules)
    assert not re.findall(r":[^:;{}]*(?:#[0-9a-fA-F]{3,8}|rgb|hsl)[^;{}]*;", rules)
