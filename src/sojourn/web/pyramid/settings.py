"""Settings of an application: texts of an .ini file into arguments.

Two prefixes: `sojourn.` before the settings of `SessionManager`, and `session.` before Pyramid's
own names for some of them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from pyramid.settings import aslist, falsey, truthy

from sojourn.core import expiry
from sojourn.errors import ConfigurationError
from sojourn.web.pyramid.old_cookie import OldCookie

__all__ = ["SettingsError", "arguments_of"]

log = logging.getLogger("sojourn")


class SettingsError(ConfigurationError, ValueError):
    """Settings of an application that cannot work, all faults in one message."""


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("a number of seconds, such as 1200, or none") from None


def _int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("a whole number, such as 1000, or none") from None


def _bool(text: str) -> bool:
    if text.lower() in truthy:
        return True
    if text.lower() in falsey:
        return False
    raise ValueError("true or false")


def _expiry(text: str) -> expiry.Expiry:
    found = getattr(expiry, text, None)
    if not isinstance(found, expiry.Expiry):
        names = [name for name in expiry.__all__ if name.startswith("NIST")]
        raise ValueError(f"one of {', '.join(names)}")
    return found


def _samesite(text: str) -> str:
    return text.capitalize()


def _text(text: str) -> str:
    return text


def _object(text: str) -> Any:
    raise ValueError("an object; no text stands for one, so give it from Python")


Convert = Callable[[str], Any]

# By the argument that it becomes. What is no text is taken as it is.
_MANAGER: dict[str, Convert] = {
    **dict.fromkeys(("store", "cookie_name", "cookie_domain", "cookie_path"), _text),
    **dict.fromkeys(("on_too_many", "on_theft", "on_conflict", "on_store_error"), _text),
    **dict.fromkeys(("idle_timeout", "lifetime", "touch_interval", "grace", "tombstone"), _number),
    **dict.fromkeys(("max_bytes", "max_keys", "max_depth", "max_sessions"), _int),
    **dict.fromkeys(("commit_on_error", "cookie_secure"), _bool),
    **dict.fromkeys(("cookie_partitioned", "cookie_persistent"), _bool),
    **dict.fromkeys(("clock", "entropy"), _object),
    "expiry": _expiry,
    "seal_keys": aslist,
    "cookie_samesite": _samesite,
}
_NONE = {
    *("idle_timeout", "lifetime", "touch_interval", "tombstone", "max_sessions"),
    *("cookie_secure", "cookie_domain", "timeout", "domain"),
}
"""Arguments that may be None, which a text says as `none`."""
_OLD: dict[str, Convert] = {
    **dict.fromkeys(("secret", "cookie_name", "path", "domain", "hashalg", "salt"), _text),
    "timeout": _number,
    "serializer": _object,
}
# Pyramid's own names.
_PYRAMID: dict[str, str] = {
    "timeout": "idle_timeout",
    "reissue_time": "touch_interval",
    "max_age": "lifetime",
    "secure": "cookie_secure",
    "samesite": "cookie_samesite",
    "domain": "cookie_domain",
    "path": "cookie_path",
    "cookie_name": "cookie_name",
}


def arguments_of(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments of `SessionManager` and of `SessionFactory` that settings say.

    Raises:
        SettingsError: with all faults.
    """
    reading = _Reading(settings)
    manager = reading.manager()
    factory = reading.factory()
    if reading.faults:
        raise SettingsError("; ".join(reading.faults))
    return manager, factory


class _Reading:
    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.faults: list[str] = []
        self._own = _below(settings, "sojourn.")
        self._pyramid = _below(settings, "session.")
        self._old = _below(self._own, "old_cookie.")
        try:
            re.compile(self._own.get("redact", ""))
        except (re.error, TypeError) as error:
            self.faults.append(f"sojourn.redact must be a regular expression ({error})")
        for name in self._own:
            if name not in _MANAGER and not name.startswith("old_cookie.") and name != "redact":
                self.faults.append(
                    f"there is no setting sojourn.{name}; settings are those of SessionManager, "
                    "redact, and old_cookie.secret and the like"
                )

    def manager(self) -> dict[str, Any]:
        """Return the arguments of the manager."""
        made = {
            name: self._value(f"sojourn.{name}", name, value, _MANAGER[name])
            for name, value in self._own.items()
            if name in _MANAGER
        }
        ignored = []
        for name, value in self._pyramid.items():
            argument = _PYRAMID.get(name)
            if argument is None:
                if name not in ("httponly", "set_on_exception"):
                    ignored.append(f"session.{name}")
                continue
            if argument in made:
                self.faults.append(f"session.{name} and sojourn.{argument} are one; give one")
                continue
            made[argument] = self._value(f"session.{name}", argument, value, _MANAGER[argument])
        if ignored:
            log.warning("settings that Sojourn has no use for: %s", ", ".join(sorted(ignored)))
        if "reissue_time" in self._pyramid and "touch_interval" in made:
            self._reissued(made)
        if made.get("lifetime") is None and "max_age" in self._pyramid:
            # The cookie of a browser session, as Pyramid's None says; no limit of the lifetime.
            made.pop("lifetime", None)
        elif "max_age" in self._pyramid:
            made.setdefault("cookie_persistent", True)
        if self._flag("httponly") is False:
            self.faults.append(
                "session.httponly is false; the cookie is HttpOnly always. It holds nothing that "
                "a script could use: remove the setting"
            )
        return made

    def _reissued(self, made: dict[str, Any]) -> None:
        if made["touch_interval"] is None:
            self.faults.append(
                "session.reissue_time is none, which would let sessions in use end; give seconds, "
                "or leave it out for a twentieth of the timeout"
            )
        elif made["touch_interval"] == 0:
            # With Pyramid's own sessions too this is from the next second on.
            made["touch_interval"] = 1

    def factory(self) -> dict[str, Any]:
        """Return the arguments of the factory."""
        made: dict[str, Any] = {"set_on_exception": self._flag("set_on_exception")}
        if not self._old:
            return made
        given = {}
        for name, value in self._old.items():
            if name in _OLD:
                given[name] = self._value(f"sojourn.old_cookie.{name}", name, value, _OLD[name])
            else:
                allowed = ", ".join(_OLD)
                self.faults.append(
                    f"there is no setting sojourn.old_cookie.{name}; there are {allowed}"
                )
        try:
            made["old_cookie"] = OldCookie(given.pop("secret", ""), **given)
        except ConfigurationError as error:
            self.faults.append(f"sojourn.old_cookie: {error}")
        return made

    def _flag(self, name: str) -> bool | None:
        if name not in self._pyramid:
            return None
        found: bool | None = self._value(f"session.{name}", name, self._pyramid[name], _bool)
        return found

    def _value(self, setting: str, name: str, value: Any, convert: Convert) -> Any:
        if not isinstance(value, str):
            return value
        text = value.strip()
        if name in _NONE and text.lower() in ("none", ""):
            return None
        try:
            return convert(text)
        except ValueError as error:
            self.faults.append(f"{setting} is {text!r}; it must be {error}")
            return None


def _below(settings: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {
        name.removeprefix(prefix): value
        for name, value in settings.items()
        if isinstance(name, str) and name.startswith(prefix)
    }
