"""What a session adds to the headers of an answer: plain lists in, plain lists out.

Sources: RFC 6265bis (Set-Cookie), RFC 9111 sections 3 and 4.1 (no-store, private, Vary), RFC 9213
(targeted cache control), OWASP ASVS 5.0 14.3.2 (no-store beside a session cookie), 14.3.1
(Clear-Site-Data at logout).
"""

from __future__ import annotations

import re

from sojourn.core.cookie import CookieSettings
from sojourn.manager import Committed

__all__ = ["Headers", "with_owed", "with_session"]

Headers = list[tuple[str, str]]

_VARY = ("Vary", "Cookie")
_PRIVATE = ("Cache-Control", "private")
_TARGETED = ("-cache-control", "surrogate-control")
"""What speaks to one kind of shared cache alone (RFC 9213: CDN-Cache-Control and its like)."""
_DIRECTIVE = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*")+')


def with_session(headers: Headers, done: Committed, cookie: CookieSettings, https: bool) -> Headers:
    """Return the headers of an answer for which the session was looked at.

    Args:
        headers: those of the application; names in any case.
        done: what the commit did.
        cookie: name and attributes of the cookie.
        https: whether the request came by https.

    Raises:
        ConfigurationError: the cookie is longer than browsers take.
    """
    set_cookie = None
    if done.token is not None or done.sealed is not None:
        set_cookie = cookie.set(
            done.sealed or str(done.token), done.max_age, cookie.is_secure(https)
        )
    elif done.cleared:
        set_cookie = cookie.clear(cookie.is_secure(https))
    caching: list[str] = []
    varies = False
    out: Headers = []
    for header in headers:
        name, value = header
        # By its length first: most headers are neither, and need not be spelt out.
        size = len(name)
        if size == 13 and name.lower() == "cache-control":
            caching.append(value)
            continue
        if size == 4 and name.lower() == "vary" and _names_cookie(value):
            varies = True
        if size > 13 and name.lower().endswith(_TARGETED):
            # It would overrule the Cache-Control below.
            continue
        out.append(header)
    if not varies:
        out.append(_VARY)
    if set_cookie is None and not caching:
        out.append(_PRIVATE)
    else:
        out.append(("Cache-Control", _private(caching, no_store=set_cookie is not None)))
    if set_cookie is not None:
        out.append(("Set-Cookie", set_cookie))
    if done.cleared and https:
        # "cookies" would also take away the cookie of the new session that this answer sets.
        what = '"cookies", "storage"' if done.token is None else '"storage"'
        out.append(("Clear-Site-Data", what))
    return out


def with_owed(headers: Headers, owed: Committed, cookie: CookieSettings, https: bool) -> Headers:
    """Return the headers of an answer in place of the application's (`SessionManager.owed`)."""
    return with_session(headers, owed, cookie, https) if owed.tells else headers


def _names_cookie(vary: str) -> bool:
    """Tell whether a Vary header covers the Cookie header already."""
    return any(part.strip() in ("*", "cookie") for part in vary.lower().split(","))


def _private(caching: list[str], *, no_store: bool) -> str:
    """Return Cache-Control so that no shared cache keeps the answer; and none at all `no_store`."""
    if no_store:
        return "no-store, private"
    kept = []
    for value in caching:
        if _DIRECTIVE.sub("", value).strip(","):
            # A quotation without an end would swallow what follows it.
            return "private"
    for part in _DIRECTIVE.findall(",".join(caching)):
        part = part.strip()
        name = part.partition("=")[0].strip().lower()
        # What allows or speaks to shared caches has to go; `private` itself is set below, whole.
        if part and name not in ("public", "s-maxage", "private", "proxy-revalidate"):
            kept.append(part)
    # First, where no quotation of what follows can swallow it, whatever a cache makes of quotes.
    return ", ".join(["private", *kept])
