"""Stores: where records are kept. `open_store("sqlite:///sessions.db")` finds one by its URL.

A store's module is imported when a URL asks for it, and with it its client library.

Another package adds a store by an entry point of the group `sojourn.stores`: its name is the
scheme, and it refers to a module, which like the ones here has `from_url(url)` and, where there
is an asynchronous client, `afrom_url(url)`. A scheme of the table below stays what it is.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, cast

from sojourn.errors import ConfigurationError

if TYPE_CHECKING:
    from sojourn.stores.base import AsyncStore, Store

__all__ = ["check_url", "open_async_store", "open_store"]

_GROUP = "sojourn.stores"

# scheme: the module, and the extra of this package that brings its client library.
_SCHEMES: dict[str, tuple[str, str]] = {
    "memory": ("memory", ""),
    "sqlite": ("sqlite", "sqlite"),
    "directory": ("directory", ""),
    "file": ("directory", ""),
    "redis": ("redis", "redis"),
    "rediss": ("redis", "redis"),
    "redis+unix": ("redis", "redis"),
    "redis+sentinel": ("redis", "redis"),
    "rediss+sentinel": ("redis", "redis"),
    "redis+cluster": ("redis", "redis"),
    "rediss+cluster": ("redis", "redis"),
    "postgresql": ("postgresql", "postgresql"),
    "postgres": ("postgresql", "postgresql"),
    "mariadb": ("mariadb", "mariadb"),
    "mysql": ("mariadb", "mariadb"),
    "cookie": ("cookie", "cookie"),
    "moving": ("moving", ""),
}


def open_store(url: str) -> Store:
    """Return the blocking store that a URL names; most connect when first used.

    Example:
        >>> from sojourn.stores import open_store
        >>> open_store("memory://").count()
        0

    Raises:
        ConfigurationError: no store has that scheme, its client library is not installed, or the
            URL has something that the store does not allow.
    """
    return cast("Store", _open(url, blocking=True))


def open_async_store(url: str) -> AsyncStore:
    """Return the asynchronous store that a URL names; a blocking one in threads if it has none.

    Raises:
        ConfigurationError: as `open_store`.
    """
    return cast("AsyncStore", _open(url, blocking=False))


def _scheme_of(url: str) -> str:
    # The URL itself is in no message: it may hold a password.
    if not isinstance(url, str):
        raise ConfigurationError(
            f"a store is opened by its URL, such as 'sqlite:///sessions.db'; "
            f"this is of the type {type(url).__name__}"
        )
    scheme, colon, _ = url.partition(":")
    if not colon:
        raise ConfigurationError(
            "the URL of a store begins with a scheme and a colon, as 'sqlite:///sessions.db' "
            f"does; this one has no colon. Known schemes: {_known()}"
        )
    return scheme.lower()


def check_url(url: str) -> None:
    """Make sure that a URL names a store whose client library is installed; opens nothing.

    Raises:
        ConfigurationError: as `open_store`, but for what is behind the scheme.
    """
    scheme = _scheme_of(url)
    try:
        _module_of(scheme)
    except ModuleNotFoundError as error:
        raise _missing(scheme, error) from error


def _open(url: str, *, blocking: bool) -> Any:
    scheme = _scheme_of(url)
    try:
        module = _module_of(scheme)
        if not blocking and hasattr(module, "afrom_url"):
            return module.afrom_url(url)
        store = module.from_url(url)
    except ModuleNotFoundError as error:
        raise _missing(scheme, error) from error
    if blocking:
        return store
    from sojourn.stores.threaded import ThreadedStore

    return ThreadedStore(store)


def _module_of(scheme: str) -> Any:
    if scheme in _SCHEMES:
        return importlib.import_module(f"{__name__}.{_SCHEMES[scheme][0]}")
    for entry in _entry_points():
        if entry.name == scheme:
            return entry.load()
    raise ConfigurationError(
        f"no store is known by the scheme {scheme[:40]!r}. Known schemes: {_known()}. Another "
        f"package adds one by an entry point of the group {_GROUP!r}"
    )


def _missing(scheme: str, error: ModuleNotFoundError) -> Exception:
    """Return what to raise for a module that a store imports in vain."""
    package = (error.name or "").partition(".")[0]
    if package in ("", "sojourn"):
        return error
    extra = _SCHEMES.get(scheme, ("", ""))[1]
    wanted = f"sojourn[{extra}]" if extra else package
    return ConfigurationError(
        f"a store by the scheme {scheme!r} needs the package {package!r}, which is not "
        f'installed: pip install "{wanted}"'
    )


def _known() -> str:
    return ", ".join([*_SCHEMES, *(e.name for e in _entry_points() if e.name not in _SCHEMES)])


def _entry_points() -> Any:
    from importlib.metadata import entry_points

    return entry_points(group=_GROUP)
