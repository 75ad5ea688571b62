"""What the visitor puts into the cart: typed state of the session."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from sojourn.core.state import Append, state

__all__ = ["GOODS", "MOST", "Cart", "Goods"]

MOST = 50
"""So many things fit into a cart."""


@state("demo.cart")
@dataclass
class Cart:
    """Names of goods, in the order in which they were put in.

    What two tabs add at the same time is all kept.
    """

    items: Annotated[list[str], Append] = field(default_factory=list)


@dataclass(frozen=True)
class Goods:
    """Something that can be bought.

    Attributes:
        name: for people.
        price: in whole euros.
    """

    name: str
    price: int


GOODS = {
    "lantern": Goods("Lantern", 24),
    "compass": Goods("Compass", 18),
    "map": Goods("Trail map", 9),
    "flask": Goods("Flask", 15),
}
