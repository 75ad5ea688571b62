"""Cookies: found in a request header byte for byte, written with the attributes that hold.

The header is parsed here and nowhere else: split on `;`, space and tab stripped, the exact name,
no quoting, a cap on the length. Browsers send what RFC 6265bis section 5.8 describes; whatever
else a parser accepts is another spelling of the name for an attacker to use.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from sojourn.core.expiry import MAX_COOKIE_AGE
from sojourn.core.token import TOKEN_PATTERN, Token, parse_token
from sojourn.errors import ConfigurationError

__all__ = ["MAX_HEADER", "CookieSettings", "find", "quick_look", "tokens_in"]

MAX_HEADER = 64 * 1024
"""A longer Cookie header holds no session cookie for us, whatever is in it."""
MAX_COOKIE = 4096
"""Browsers refuse a longer name and value together (RFC 6265bis, section 5.6)."""
_MAX_TOKENS = 4


def find(header: str, name: str) -> list[str]:
    """Return the values of all cookies of that exact name, in their order, equal ones once.

    Args:
        header: the Cookie header; bytes above 0x7F as latin-1, so that every byte is one
            character.
        name: the name.
    """
    start = name + "="
    if start not in header or len(header) > MAX_HEADER:
        return []
    size = len(start)
    # A dictionary: of many different ones a list would be searched in quadratic time.
    found: dict[str, None] = {}
    for pair in header.split(";"):
        pair = pair.strip(" \t")
        if pair.startswith(start):
            found[pair[size:]] = None
    return list(found)


def quick_look(name: str) -> Callable[[str], Token | None]:
    """Return what finds the token in a Cookie header in the ordinary case.

    That is one cookie of the name, spelt as browsers spell it. Its None means nothing yet:
    `tokens_in` knows all cases.
    """
    start = name + "="
    search = re.compile(rf"(?:\A|; ){re.escape(start)}{TOKEN_PATTERN}(?=;|\Z)").search

    def look(header: str) -> Token | None:
        found = search(header)
        # The name may stand nowhere else: another cookie would have to be looked at too.
        if found is None or header.count(start) != 1 or len(header) > MAX_HEADER:
            return None
        return Token(*found.groups())

    return look


def tokens_in(header: str, name: str) -> list[Token]:
    """Return the well-formed tokens in a Cookie header; of very many the first few."""
    return [token for value in find(header, name) if (token := parse_token(value))][:_MAX_TOKENS]


class CookieSettings:
    """Name and attributes of the session cookie; both forms (http and https) made once."""

    __slots__ = (
        "_clear",
        "_tail",
        "domain",
        "name_for",
        "names",
        "path",
        "quick_look_for",
        "secure",
    )

    def __init__(
        self,
        name: str = "id",
        *,
        secure: bool | None = None,
        domain: str | None = None,
        path: str = "/",
        samesite: str = "Lax",
        partitioned: bool = False,
    ) -> None:
        """Check and keep the settings.

        Args:
            name: without prefix: on https it is `__Host-<name>` (`__Secure-<name>` where a
                domain or another path is set), on http `<name>` alone.
            secure: True: always as on https; False: never; None: as the request's scheme says.
            domain: only for a cookie shared by subdomains.
            path: where it is sent.
            samesite: "Lax", "Strict" or "None"; "None" only where `secure` is True.
            partitioned: for embedded pages (CHIPS); only with samesite "None".

        Raises:
            ConfigurationError: with everything that is wrong.
        """
        faults = []
        allowed = set("!#$%&'*+-.^_`|~") | set(_ALNUM)
        if not name or not set(name) <= allowed or name.lower().startswith(("__host", "__secure")):
            faults.append(
                f"cookie_name is {name!r}; it must be letters, digits, - or _, without a prefix "
                "(__Host- and __Secure- are set by themselves)"
            )
        if samesite not in ("Lax", "Strict", "None"):
            faults.append(f"cookie_samesite is {samesite!r}; it must be 'Lax', 'Strict' or 'None'")
        if samesite == "None" and secure is not True:
            faults.append("cookie_samesite 'None' needs cookie_secure=True, or browsers refuse it")
        if partitioned and samesite != "None":
            faults.append("cookie_partitioned needs cookie_samesite 'None' and cookie_secure=True")
        if not path.startswith("/") or not set(path) <= allowed | set("/@:=,"):
            faults.append(f"cookie_path is {path!r}; it must begin with / and hold no ; or space")
        if domain is not None and (not domain or not set(domain) <= set(_ALNUM) | set(".-")):
            faults.append(f"cookie_domain is {domain!r}; it must be a host name")
        if faults:
            raise ConfigurationError("; ".join(faults))
        self.secure = secure
        self.domain = domain
        self.path = path
        prefix = "__Host-" if domain is None and path == "/" else "__Secure-"
        self.names = (name, prefix + name)
        # By whether the request came by https.
        self.name_for = tuple(self.names[self.is_secure(https)] for https in (False, True))
        self.quick_look_for = tuple(quick_look(name) for name in self.name_for)
        tail = f"; Path={path}; HttpOnly; SameSite={samesite}"
        if domain is not None:
            tail += f"; Domain={domain}"
        if partitioned:
            tail += "; Partitioned"
        self._tail = (tail, tail + "; Secure")
        gone = "; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT"
        self._clear = tuple(
            f"{cookie}={gone}{rest}" for cookie, rest in zip(self.names, self._tail, strict=True)
        )

    def is_secure(self, https: bool) -> bool:
        """Tell whether the cookie of a request is the secure one."""
        return https if self.secure is None else self.secure

    def set(self, value: str, max_age: int | None, secure: bool) -> str:
        """Return the value of a Set-Cookie header.

        Raises:
            ConfigurationError: name and value are longer than browsers take.
        """
        name = self.names[secure]
        size = len(name) + len(value)
        if size > MAX_COOKIE:
            raise ConfigurationError(
                f"the cookie {name} takes {size:,} bytes (name {len(name)}, value "
                f"{len(value):,}); browsers take {MAX_COOKIE:,} and drop a longer one"
            )
        age = "" if max_age is None else f"; Max-Age={min(max_age, MAX_COOKIE_AGE)}"
        return f"{name}={value}{age}{self._tail[secure]}"

    def clear(self, secure: bool) -> str:
        """Return the value of a Set-Cookie header that makes the browser forget the cookie."""
        return self._clear[secure]


_ALNUM = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
