"""A watch on the logs."""

from __future__ import annotations

from ..security.no_secrets import no_secret_is_logged as no_secret_is_logged
