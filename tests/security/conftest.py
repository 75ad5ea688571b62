"""Both middlewares, and a watch on the logs."""

from __future__ import annotations

from ..web.conftest import make_site as make_site
from ..web.conftest import site as site
from .no_secrets import no_secret_is_logged as no_secret_is_logged
