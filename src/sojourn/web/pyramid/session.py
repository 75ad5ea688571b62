"""The session as Pyramid wants it: the whole of `pyramid.interfaces.ISession`, and the core's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from pyramid.httpexceptions import HTTPServiceUnavailable
from pyramid.interfaces import ISession
from zope.interface import implementer, providedBy

from sojourn.core import csrf
from sojourn.core.opening import Opened
from sojourn.core.record import Client
from sojourn.core.rules import Environment
from sojourn.core.session import _FLASH
from sojourn.core.session import Session as CoreSession
from sojourn.core.status import Event
from sojourn.core.token import drawn
from sojourn.errors import StoreUnavailable
from sojourn.web.components import component, schema_of

__all__ = ["Session", "SessionUnavailable"]

CSRF = "_csrft_"
"""Where Pyramid's own sessions keep their form token, and where its policies look for it."""
USER = "userid"
"""Where Pyramid's `SessionAuthenticationHelper` remembers a user, after a prefix such as `auth.`"""
FLASH = "_f_"
"""What the key of a queue of messages begins with in Pyramid's own sessions."""

_NOBODY = Client()


class SessionUnavailable(StoreUnavailable, HTTPServiceUnavailable):  # type: ignore[misc]
    """The store did not answer; where no view catches it, Pyramid answers with 503."""

    def __init__(self, error: StoreUnavailable) -> None:
        """Say what that error says: to the log, not to the client."""
        super().__init__(str(error), transient=error.transient)
        self.detail = None

    def __str__(self) -> str:
        return str(self.args[0])


@implementer(ISession)
class Session(CoreSession):
    """A visitor's session: `request.session`.

    All that `sojourn.Session` can do, under the names of `ISession` too. What its zope adapters
    keep in Attributes is kept with it: `ICounter(request.session)`.
    """

    __slots__ = ("_registry",)

    _registry: Any
    """Where adapters are looked for; None: nowhere."""

    def __init__(
        self,
        env: Environment,
        load: Callable[..., Opened],
        client: Client = _NOBODY,
        *arguments: Any,
    ) -> None:
        """Make one whose record `load(*arguments)` finds when it is first used, for that client."""
        super().__init__(env, partial(_loaded, load, *arguments), client)
        self._registry = None

    @property
    def created(self) -> int:
        """When it was made, in whole UTC seconds."""
        return int(super().created)

    def _start(self) -> float:
        at = self.authenticated
        return super().created if at is None else at

    @property
    def new(self) -> bool:
        """Whether it is not in the store yet: also after `invalidate`, and where it has expired."""
        return self.is_new

    def invalidate(self) -> None:
        """End the session for good: as `logout`. No copy of its cookie works any more.

        What is written afterwards goes into a new one.
        """
        self.end("user")

    def changed(self) -> None:
        """Do nothing: what was changed in place is found at the end of the request anyway."""

    # Form tokens as Pyramid's default policy asks for them: the same text on each page.

    def get_csrf_token(self) -> str:
        """Return the token of this session; make one where there is none."""
        token: str | None = self.get(CSRF)
        if token is None:
            # Of the record's salt, so that two pages that make one at once make the same. The mask
            # of zeros is one as good as any for `check_csrf`.
            token = csrf.form_token(self._salt_of(make=True), bytes)
            self[CSRF] = token
        return token

    def new_csrf_token(self) -> str:
        """Return a new token; those from before are refused."""
        self._salt_of(make=True)
        self._working().salt = drawn(self._env.entropy, 16)
        self._event(Event.WRITE)
        self.pop(CSRF, None)
        return self.get_csrf_token()

    def login(self, user: str, **claims: Any) -> None:
        """As `sojourn.Session.login`."""
        super().login(user, **claims)
        self.pop(CSRF, None)

    # Messages lie where all frameworks find them. Pyramid's names for that are names for it here.

    def flash(self, msg: Any, queue: str = "", allow_duplicate: bool = True) -> None:
        """Keep a message for the next page that pops it."""
        super().flash(msg, queue, allow_duplicate)

    if not TYPE_CHECKING:

        def __getitem__(self, key):
            if type(key) is str and key.startswith(FLASH):
                # Themselves, no copy: they may be changed in place as any other value.
                messages = self.get(_FLASH + key[len(FLASH) :])
                if not messages:
                    raise KeyError(key)
                return messages
            return super().__getitem__(key)

        def __setitem__(self, key, value):
            if type(key) is str and key.startswith(FLASH):
                messages = list(value)
                # The core checks the key and the value as those of the application.
                super().__setitem__(key, messages)
                super().__delitem__(key)
                self._put(_FLASH + key[len(FLASH) :], messages)
                return
            if type(key) is str and key.endswith(USER) and self._gains(key, value):
                # The visitor gains rights, as by a login.
                self.renew()
            super().__setitem__(key, value)

        def setdefault(self, key, default=None):
            if type(key) is str and key.startswith(FLASH) and key not in self:
                self[key] = default
                return self.get(_FLASH + key[len(FLASH) :])
            return super().setdefault(key, default)

        def __delitem__(self, key):
            if type(key) is str and key.startswith(FLASH):
                if not self.pop_flash(key[len(FLASH) :]):
                    raise KeyError(key)
            else:
                super().__delitem__(key)

        def __contains__(self, key):
            if type(key) is str and key.startswith(FLASH):
                return bool(self.peek_flash(key[len(FLASH) :]))
            return super().__contains__(key)

    def _gains(self, key: str, user: Any) -> bool:
        return key.rpartition(".")[2] == USER and self.get(key) != user

    # Components.

    def __conform__(self, interface: Any) -> Any:
        """Return the component of a zope interface: what `ICounter(request.session)` asks for."""
        if self._registry is None:
            return None
        factory = self._registry.adapters.lookup1(providedBy(self), interface)
        if factory is None:
            return None
        if schema_of(interface) is None:
            return factory(self)
        return component(self, interface, partial(factory, self))


def _loaded(load: Callable[..., Opened], *arguments: Any) -> Opened:
    try:
        return load(*arguments)
    except StoreUnavailable as error:
        raise SessionUnavailable(error) from error
