"""The session manager that a Quixote publisher is given."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import traceback
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

import quixote
from quixote.errors import PublishError

from sojourn.core import session as core
from sojourn.core.calls import Flow, List
from sojourn.core.cookie import find, tokens_in
from sojourn.core.opening import Opened, unseal
from sojourn.core.record import LIVE, Client, Record
from sojourn.core.status import Status
from sojourn.errors import (
    ConfigurationError,
    Conflict,
    DamagedRecord,
    SessionEnded,
    SojournError,
    StoreUnavailable,
)
from sojourn.manager import Committed
from sojourn.manager import SessionManager as Sessions
from sojourn.web.failure import ANSWERED, too_late
from sojourn.web.quixote.answers import Failed, Refusal, tell
from sojourn.web.quixote.session import Session, Visit
from sojourn.web.quixote.stores import check_server
from sojourn.web.session3 import token_of_id

__all__ = ["SessionManager"]

log = logging.getLogger("sojourn")

_PAGE = 100
_TOKEN = re.compile(r"([A-Za-z0-9_-]{22})\.[A-Za-z0-9_-]{43}")
# Robots say so. "Cubot" is a maker of telephones.
_is_robot = re.compile(r"(?<!cu)bot\b|crawl|spider|slurp", re.IGNORECASE).search


class SessionManager:
    """Opens the session of each request and commits it: `Publisher(root, session_manager=...)`.

    Quixote calls `start_request`, `finish_successful_request` and `finish_failed_request`;
    applications call the rest.
    """

    def __init__(
        self, sessions: Sessions, session_class: type[Session] = Session, *, exclusive: bool = False
    ) -> None:
        """Serve sessions of `sessions` as objects of `session_class`.

        Args:
            sessions: Sojourn's manager, which has the store and all settings.
            session_class: `Session`, `DictSession` or a subclass.
            exclusive: requests of one visitor wait for each other, from the first use of the
                session to the commit, as with `sojourn.SessionManager.exclusive`. Then
                `session.counter += 1` loses nothing; but reading costs three writes, and a page
                that is slow keeps the visitor's other pages waiting.

        Raises:
            ConfigurationError: with everything that is wrong.
        """
        faults: list[str] = []
        if not isinstance(sessions, Sessions):
            faults.append(f"sessions is {sessions!r}; it must be a sojourn.SessionManager")
        if not (isinstance(session_class, type) and issubclass(session_class, Session)):
            faults.append(
                f"session_class is {session_class!r}; it must be sojourn.web.quixote.Session or a "
                "subclass of it: derive it from that in place of Quixote's or Session3's"
            )
        if faults:
            raise ConfigurationError("; ".join(faults))
        self.sessions = sessions
        self.session_class = session_class
        self.exclusive = exclusive
        self._checked: Any = None

    # Called by the publisher.

    def start_request(self) -> None:
        """Give the request its session, which is loaded when it is first used."""
        request = quixote.get_request()
        before: _OfRequest | None = getattr(request, "sojourn_visit", None)
        if before is not None:
            # A publisher of the application's own that tries a request again.
            before.leave()
        request.sojourn_visit = self._visit(request)
        request.session = None
        request.session = session = self.get_session()
        session.start_request()

    def finish_successful_request(self) -> None:
        """Commit; called after a page and after a `PublishError`, which is a page as well."""
        request = quixote.get_request()
        visit: _OfRequest | None = getattr(request, "sojourn_visit", None)
        if visit is None:
            # What came could not be understood, so no session was looked for.
            return
        interrupted = isinstance(sys.exc_info()[1], PublishError)
        try:
            if visit.core.failure is not None and request.response.status_code >= 500:
                # The application made an error page of its own out of the store's failure.
                raise visit.core.failure
            self._tell(request, visit, self._commit(request, visit))
        except (StoreUnavailable, *ANSWERED) as error:
            self._refuse(request, visit, error)
        except Exception as error:
            if not interrupted:
                raise
            # Here Quixote would not catch it, and the client would get no answer at all.
            quixote.get_publisher().logger.log_internal_error(repr(error), traceback.format_exc())
            visit.leave()
            request.response = Failed()
        visit.over = True

    def finish_failed_request(self) -> None:
        """Undo what the request did; called after any other exception."""
        request = quixote.get_request()
        visit: _OfRequest | None = getattr(request, "sojourn_visit", None)
        if visit is None:
            return
        error = sys.exc_info()[1]
        # What the page committed by itself stays done, and the browser has to know.
        done = self.sessions.owed(visit.core)
        if self.sessions.commit_on_error:
            try:
                done = self._commit(request, visit)
            except Exception as failure:
                # Also of the application's `has_info`. Here Quixote would not catch it.
                log.error("%r: what the request did is lost: %r", request.get_path(), failure)
        visit.leave()
        refusal: SojournError | None = visit.core.failure or visit.failure
        if refusal is None and isinstance(error, ANSWERED):
            refusal = error
        if refusal is not None:
            self._refuse(request, visit, refusal)
        else:
            self._tell(request, visit, done)
        visit.over = True

    # Called by applications.

    def get_session(self) -> Any:
        """Return the session of the request; after `expire_session` a new one."""
        request = quixote.get_request()
        visit: _OfRequest | None = getattr(request, "sojourn_visit", None)
        if visit is None:
            visit = request.sojourn_visit = self._visit(request)
        session = request.session
        return self.session_class._standing_on(visit) if session is None else session

    def new_session(self, id: str | None = None) -> Any:
        """Return a new session apart from that of the request; it is kept by `maintain_session`.

        Args:
            id: is not looked at; a session has an id when it is kept.
        """
        return self.session_class(None)

    def maintain_session(self, session: Session) -> bool:
        """Commit a session now, if it has something worth keeping; whether it is kept.

        Not needed, as each request ends with it; but from here on a new session has its `id`.
        """
        late = not self._worth(session)
        self.sessions.commit(session._visit.core, late=late)
        return not session._visit.core.is_new

    def expire_session(self) -> None:
        """End the session of the request for good, and have the browser forget its cookie.

        It happens when the request succeeds. The request has no session from here on:
        `quixote.get_session()` returns None.
        """
        request = quixote.get_request()
        session = request.session
        if session is not None:
            session.sojourn.end("user")
            # What it stands for now is another one, and new.
            session._visit.begun = False
        request.session = None

    def has_session_cookie(self, must_exist: bool = False) -> bool:
        """Tell whether the request came with a session cookie, or with one that is good."""
        visit: _OfRequest | None = getattr(quixote.get_request(), "sojourn_visit", None)
        if visit is None or not find(visit.cookie, self.sessions.cookie.name_for[visit.https]):
            return False
        return not (must_exist and visit.core.is_new)

    def has_session(self, id: str) -> bool:
        """Tell whether there is a live session with that id."""
        return id in self

    def get(self, id: str, default: Any = None) -> Any:
        """Return the live session with that id, the request's own or any other.

        What is written to another one is kept when it is given to `maintain_session`.
        """
        mine = getattr(quixote.get_request(), "session", None) if quixote.get_publisher() else None
        if mine is not None and isinstance(id, str) and mine.id == id:
            return mine
        found = self.sessions.find(id) if isinstance(id, str) else None
        return default if found is None else self._other(found)

    def __getitem__(self, id: str) -> Any:
        session = self.get(id)
        if session is None:
            raise KeyError(id)
        return session

    def __delitem__(self, id: str) -> None:
        """End a session for good."""
        if not self.sessions.end(id):
            raise KeyError(id)

    def __contains__(self, id: object) -> bool:
        return isinstance(id, str) and self.sessions.find(id) is not None

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the live sessions themselves, as with Quixote's own manager."""
        env = self.sessions._env
        after = ""
        while True:
            page = self.sessions.run(_page(after))
            for record in page:
                now = env.clock()
                if now < record.deadline:
                    try:
                        opened = Opened(now, record, unseal(record, env))
                    except DamagedRecord:
                        continue
                    yield self._other(core.Session(env, lambda opened=opened: opened))
            if len(page) < _PAGE:
                return
            after = page[-1].sid

    def __len__(self) -> int:
        """Return how many sessions there are, also those that are over and not yet swept."""
        return self.sessions.count()

    def __bool__(self) -> bool:
        return True

    # Inside.

    def _other(self, session: core.Session) -> Any:
        return self.session_class._standing_on(Visit(session, begun=True))

    def _visit(self, request: Any) -> _OfRequest:
        config, environ = quixote.get_publisher().config, request.environ
        if config is not self._checked:
            _check(config, self.sessions)
            with contextlib.suppress(StoreUnavailable):
                check_server(self.sessions.store, environ)
                self._checked = config
        https = environ.get("wsgi.url_scheme") == "https" or request.get_scheme() == "https"
        cookie = environ.get("HTTP_COOKIE") or ""
        former = ""
        if cookie:
            names: tuple[str, ...] = (config.session_cookie_name,)
            if self.sessions._carried:
                # Sealed, and so without a half that may be shown.
                names += self.sessions.cookie.name_for
            _hide_secrets(request, names)
            name = self.sessions.cookie.name_for[https]
            if not (tokens_in(cookie, name) or self.sessions._carried):
                # An id that Session3 gave out; where it was taken over, it opens the session once.
                for value in find(cookie, config.session_cookie_name):
                    token = token_of_id(value.strip('"'))
                    if token is not None:
                        cookie, former = f"{name}={token}", config.session_cookie_name
                        break
        client = Client(environ.get("REMOTE_ADDR") or "", environ.get("HTTP_USER_AGENT") or "")
        return _OfRequest(self.sessions, cookie, https, client, self.exclusive, former)

    def _worth(self, session: Session) -> bool:
        """Tell whether what was written to a session is to be kept; else end what is in the store.

        What is not worth it is committed "late": a new session is not made then, and what the
        request ended before ends all the same.
        """
        beneath = session._visit.core
        if not beneath.loaded:
            return True
        worth = session.has_info()
        if beneath.is_new:
            return worth and (session.user is not None or not _is_robot(beneath.client.agent))
        if not worth:
            # Looks for what was changed in place.
            beneath._collect()
            if beneath.status in _WRITTEN:
                beneath.end("user")
        return True

    def _commit(self, request: Any, visit: _OfRequest) -> Committed:
        session, sessions = request.session, self.sessions
        if visit.former and visit.core.loaded and not visit.core.is_new:
            visit.core.renew()
            config = quixote.get_publisher().config
            path = config.session_cookie_path or f"{request.get_environ('SCRIPT_NAME', '')}/"
            request.response.expire_cookie(
                visit.former, path=path, domain=config.session_cookie_domain
            )
        if session is not None and session._visit is not visit:
            # The application put another one in its place.
            done = sessions.commit(session._visit.core, late=not self._worth(session))
            former = sessions.commit(visit.core)
            done.cleared |= former.cleared
            return done
        if session is None and visit.begun:
            # One that `get_session` gave after the end of the other.
            session = self.session_class._standing_on(visit)
        visit.worth = session is None or self._worth(session)
        return visit.commit()

    def _tell(self, request: Any, visit: _OfRequest, done: Committed) -> None:
        beneath = visit.core
        looked_at = beneath.loaded or beneath.failure is not None
        tell(
            request.response,
            done if looked_at else None,
            self.sessions.cookie,
            visit.https,
            partial(self._finish_late, visit, request.session, request.get_path()),
            "wsgi.version" in request.environ,
        )

    def _finish_late(self, visit: _OfRequest, session: Session | None, path: str) -> None:
        """Commit what a streamed body changed; a failure can only be logged."""
        beneath = visit.core
        if not beneath.loaded:
            return
        try:
            done = self.sessions.commit(beneath, late=True)
            if done.dropped != "late" or (session is not None and session.has_info()):
                lost = too_late(done)
                if lost:
                    log.error("%r: %s", path, lost)
        except SojournError as error:
            log.error("%r: what the body changed is lost: %s", path, error)

    def _refuse(self, request: Any, visit: _OfRequest, error: BaseException) -> None:
        log.error("%s %r: %s", request.get_method(), request.get_path(), error)
        request.response = Refusal(error)
        visit.leave()
        owed = self.sessions.owed(visit.core)
        if owed.tells:
            self._tell(request, visit, owed)
        # Or it would hold the frames that hold the session that holds it.
        error.__traceback__ = None


class _OfRequest(Visit):
    """The session of a request, with the lock where requests exclude each other.

    Attributes:
        cookie: the Cookie header as the core takes it.
        https: whether the request came by https.
        former: name of a cookie of Session3 that the session was opened with; empty: of our own.
        worth: whether a new session is kept.
        failure: why the lock could not be asked for.
    """

    worth = True
    failure: StoreUnavailable | None = None
    _lock: contextlib.AbstractContextManager[core.Session] | None = None

    def __init__(
        self,
        sessions: Sessions,
        cookie: str,
        https: bool,
        client: Client,
        exclusive: bool,
        former: str,
    ) -> None:
        super().__init__(sessions.session(cookie, https=https, client=client))
        self.sessions = sessions
        self.cookie = cookie
        self.https = https
        self.client = client
        self.exclusive = exclusive
        self.former = former

    def begin(self) -> None:
        """Wait for the lock, if there is one, before anything of the session is read."""
        if not self.exclusive or self.over or self._lock is not None or self.core.is_new:
            return
        lock = self.sessions.exclusive(self.core)
        try:
            lock.__enter__()
        except SessionEnded:
            # By the request that was waited for. What is there now is what its visitor has.
            self.core = self.sessions.session(self.cookie, https=self.https, client=self.client)
        except StoreUnavailable as error:
            self.failure = error
            raise
        else:
            self._lock = lock

    def commit(self) -> Committed:
        """Commit, and give the lock back."""
        sessions, beneath = self.sessions, self.core
        lock, self._lock = self._lock, None
        if lock is None:
            return sessions.commit(beneath, late=not self.worth)
        if self.worth:
            lock.__exit__(None, None, None)
            return sessions.commit(beneath)
        # It ended under the lock, and nothing is worth a new one, which the lock would make.
        done = sessions.commit(beneath, late=True)
        beneath.end("user")
        lock.__exit__(None, None, None)
        return done

    def leave(self) -> None:
        """Undo what was done under the lock, if it is held, and give it back."""
        lock, self._lock = self._lock, None
        if lock is None:
            return
        error = sys.exc_info()[1] or Conflict("the request failed")
        try:
            lock.__exit__(type(error), error, error.__traceback__)
        except SojournError as failure:
            log.error("the lock of session %s is left to end: %s", self.core.sid, failure)


_WRITTEN = (Status.CHANGED, Status.RENEWED)


def _page(after: str) -> Flow[list[Record]]:
    return (yield List(None, LIVE, after, _PAGE))  # type: ignore[no-any-return]


def _hide_secrets(request: Any, names: tuple[str, ...]) -> None:
    """Have Quixote show no cookie of ours when it writes a failed request to its log."""
    # Not the request itself: it would lead to itself, and wait for the garbage collector.
    this = weakref.ref(request)
    dump = type(request).dump

    def hidden() -> str:
        ours = rf"(\b(?:{'|'.join(map(re.escape, names))})\W+)[\w.-]+"
        return re.sub(ours, r"\1...", _TOKEN.sub(r"\1...", dump(this())))

    request.dump = hidden


def _check(config: Any, sessions: Sessions) -> None:
    """Make sure that what Quixote was told of its cookie is true of ours.

    Raises:
        ConfigurationError: with everything that is not.
    """
    cookie = sessions.cookie
    wanted = (
        ("SESSION_COOKIE_SECURE", config.session_cookie_secure, cookie.secure, "cookie_secure"),
        ("SESSION_COOKIE_DOMAIN", config.session_cookie_domain, cookie.domain, "cookie_domain"),
        ("SESSION_COOKIE_PATH", config.session_cookie_path, cookie.path, "cookie_path"),
    )
    faults = [
        f"Quixote's {name} is {told!r}, and the cookie is set by sojourn.SessionManager: give it "
        f"{setting}={told!r} as well"
        for name, told, true, setting in wanted
        if told and told != true
    ]
    if faults:
        raise ConfigurationError("; ".join(faults))
