"""Taking over what lies in the cookies of Pyramid's own `SignedCookieSessionFactory`.

Such a cookie is read once: a session with its data is made in the store, the visitor gets a cookie
of that, and the old one is removed. A copy of the old one opens the same session for the grace of a
renewal (requests that were on their way together), and nothing after that.
"""

from __future__ import annotations

import logging
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from typing import Any

from webob.cookies import SignedSerializer

from sojourn.core.adopting import token_of
from sojourn.core.cookie import CookieSettings, find
from sojourn.core.expiry import seconds
from sojourn.core.opening import Opened
from sojourn.core.record import Client
from sojourn.core.session import _FLASH
from sojourn.errors import ConfigurationError, InvalidValue, StoreUnavailable
from sojourn.manager import SessionManager
from sojourn.web.pyramid.session import FLASH, Session

__all__ = ["OldCookie", "Taken"]

SYSTEM = "pyramid.session"
_MAX = 4
"""Of very many cookies of one name only the first few are looked at."""

log = logging.getLogger("sojourn")


class OldCookie:
    """The settings of the factory that made the old cookies; give it the very same ones."""

    def __init__(
        self,
        secret: str | bytes,
        *,
        cookie_name: str = "session",
        path: str = "/",
        domain: str | None = None,
        timeout: float | None = 1200,
        hashalg: str = "sha512",
        salt: str = "pyramid.session.",
        serializer: Any = None,
    ) -> None:
        """Know how to read them.

        Args:
            secret, cookie_name, path, domain, timeout, hashalg, salt: as they were.
            serializer: as it was, an object with `loads`; None: JSON, as Pyramid's own is.

        Raises:
            ConfigurationError: with everything that is wrong.
        """
        if not isinstance(secret, (str, bytes)) or not secret:
            raise ConfigurationError("the secret of the old cookie must be a str that is not empty")
        if serializer is not None and not callable(getattr(serializer, "loads", None)):
            raise ConfigurationError(
                f"serializer of the old cookie is {serializer!r}; it must be an object with loads"
            )
        try:
            self._signed = SignedSerializer(secret, salt, hashalg, serializer)
        except ValueError as error:
            raise ConfigurationError(
                f"hashalg of the old cookie is {hashalg!r}, which hashlib does not know"
            ) from error
        # It checks name, path and domain.
        CookieSettings(cookie_name, path=path, domain=domain)
        self.cookie_name = cookie_name
        self._timeout = seconds(timeout, "timeout of the old cookie")
        gone = f"{cookie_name}=; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Path={path}"
        self.removal = gone if domain is None else f"{gone}; Domain={domain}"

    def read(self, value: str, now: float) -> Mapping[str, Any] | None:
        """Return what a cookie holds; None: it is forged, damaged, or too old."""
        try:
            renewed, _, state = self._signed.loads(value.encode("latin-1"))
            too_old = self._timeout is not None and now - float(renewed) > self._timeout
        except Exception:
            # A serializer of the application's own raises what it likes.
            return None
        return None if too_old or not isinstance(state, dict) else state


class Taken:
    """The old cookie of one request; `open` is what loads its session."""

    __slots__ = ("_client", "_found", "_https", "_old", "_renewed", "_sessions", "_values")

    def __init__(
        self, old: OldCookie, sessions: SessionManager, header: str, https: bool, client: Client
    ) -> None:
        self._old = old
        self._sessions = sessions
        self._values = find(header, old.cookie_name)[:_MAX]
        self._https = https
        self._client = client
        self._found = self._renewed = False

    def open(self) -> Opened:
        """Open the session that the old cookie stands for; make it if this is the first time.

        Raises:
            StoreUnavailable: unless such requests are to go on.
        """
        sessions, https = self._sessions, self._https
        opened = sessions.open("", https)
        for spelt in self._values:
            value = _canonical(spelt)
            state = self._old.read(value, opened.now)
            if state is None:
                continue
            token = token_of(SYSTEM, value)
            try:
                sessions.adopt(token, _as_kept(state), client=self._client)
            except InvalidValue as error:
                log.warning("an old cookie holds what cannot be kept, so it is not used: %s", error)
                continue
            except StoreUnavailable:
                # The same is met below, and there it is known what is to be done about it.
                pass
            opened = sessions.open(f"{sessions.cookie.name_for[https]}={token}", https)
            self._found = opened.record is not None or opened.ended_before is not None
            break
        return opened

    def renew(self, session: Session) -> None:
        """Give the session a token that cannot be derived from the old cookie, once."""
        if self._found and not self._renewed:
            self._renewed = True
            session.renew()

    @property
    def removal(self) -> str:
        """The Set-Cookie that removes the old cookie; empty where that is not to be."""
        old, sessions = self._old, self._sessions
        # A cookie of the same name takes its place by itself; and another answer may bring it.
        same = old.cookie_name == sessions.cookie.name_for[self._https]
        return old.removal if self._found and not same else ""


def _canonical(value: str) -> str:
    """Return the one spelling of what a signed cookie holds; empty: it is not base64.

    Its reader skips what is no base64, ignores the last bits, and takes two alphabets. Were the
    session that of the spelling, each other spelling would open another one: a copy of the cookie
    would never wear out.
    """
    try:
        # Some clients quote the value of a cookie; Pyramid took that.
        text = value.strip('"').encode("latin-1")
        held = urlsafe_b64decode(text + b"=" * (-len(text) % 4))
    except ValueError:
        return ""
    return urlsafe_b64encode(held).rstrip(b"=").decode()


def _as_kept(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of an old cookie under the keys that they have in a record."""
    kept = {}
    for key, value in state.items():
        if not isinstance(key, str) or key.startswith("\0"):
            raise InvalidValue(f"the key {key!r} is no str, or begins with NUL")
        if key.startswith(FLASH) and isinstance(value, list):
            kept[_FLASH + key[len(FLASH) :]] = value
        else:
            kept[key] = value
    return kept
