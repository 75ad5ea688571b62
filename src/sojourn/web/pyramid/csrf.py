"""Form tokens by Pyramid's interface, masked anew on each page."""

from __future__ import annotations

from hmac import compare_digest
from typing import Any

from pyramid.interfaces import ICSRFStoragePolicy
from zope.interface import implementer

from sojourn.errors import CsrfError
from sojourn.web.pyramid.session import CSRF

__all__ = ["CSRFStoragePolicy"]


@implementer(ICSRFStoragePolicy)
class CSRFStoragePolicy:
    """Takes the form tokens of the session: `config.set_csrf_storage_policy(...)`.

    Unlike those of Pyramid's own policies they look different on each page, so that compression
    gives nothing away of them; they need no write for a session that is there; and a login makes
    those from before it useless.
    """

    def new_csrf_token(self, request: Any) -> str:
        """Make those from before useless, and return a new one."""
        request.session.new_csrf_token()
        return self.get_csrf_token(request)

    def get_csrf_token(self, request: Any) -> str:
        """Return a token for a form, another one each time."""
        token: str = request.session.csrf_token
        return token

    def check_csrf_token(self, request: Any, token: str) -> bool:
        """Tell whether a form's token is of this session."""
        session = request.session
        try:
            session.check_csrf(token)
        except CsrfError:
            # What Pyramid's own policy put into a form: the page may have been open since before
            # this one was chosen.
            before = session.get(CSRF)
            return (
                isinstance(before, str)
                and isinstance(token, str)
                and compare_digest(before.encode(), token.encode("utf-8", "backslashreplace"))
            )
        return True
