"""What the middlewares promise holds in Pyramid too: the same tests."""

from __future__ import annotations

from ..test_both import *  # noqa: F403
from ..test_store_taken_away import *  # noqa: F403

# It is given its sites by their names, and would try those again.
del test_p2_any_uses_in_any_order  # noqa: F821
