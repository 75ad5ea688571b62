"""The request: loads the session before anything is looked for, commits before anything leaves.

`write`, `registerProducer` and `finish` wait behind a gate until the session is committed, if it
was used, and only where the store makes them wait. What the application calls meanwhile is done
afterwards, in its order.
"""

# Twisted has few types; and a Deferred with a callback need not be awaited.
# mypy: disable-error-code="no-untyped-call,unused-awaitable"

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted
from twisted.python.failure import Failure
from twisted.web import http, server

from sojourn.core.opening import Opened
from sojourn.core.record import Client
from sojourn.errors import ConfigurationError, Conflict, SojournError, StoreUnavailable
from sojourn.manager import Committed
from sojourn.web.failure import ANSWERED, NOT_COMMITTED, failure_of, too_late
from sojourn.web.headers import with_session
from sojourn.web.twisted._log import log
from sojourn.web.twisted.realm import Entry, Realm, with_owed
from sojourn.web.twisted.session import CURRENT, durable

__all__ = ["DurableRequest", "Request", "adopt", "durable_factory"]

if TYPE_CHECKING:
    _Base = server.Request
else:
    # It is put before the class, whichever it is.
    _Base = object

_COOKIES = (b"TWISTED_SESSION", b"TWISTED_SECURE_SESSION")


class DurableRequest(_Base):
    """What makes a request class one with durable sessions; put before the class."""

    _realm: Realm | None = None
    """Whose sessions; None: the stock ones."""
    _cookie: str | None = None
    _opened: dict[bool, Opened | StoreUnavailable] | None = None
    _entries: dict[bool, Entry] | None = None
    """Its uses of sessions, by whether it is the one of https."""
    _former: list[Entry] | None = None
    """Those of sessions that have ended in this request."""
    _waiting: list[Callable[[], object]] | None = None
    """What the application has called since a commit began; None: no commit is under way."""
    _passed = False
    """The head may leave."""
    _broken = False
    """Nothing more is committed."""
    _replaced = False
    """It was answered, and nothing more of the application's is sent."""
    _finishing = False
    _returned = False
    """The resource has returned the whole body."""
    _settled = False
    """All that it did is committed."""
    _refusal: BaseException | None = None

    # Loading.

    def process(self) -> None:
        """Load the session if a cookie came, then go on as usual."""
        realm = getattr(self.channel.site, "_realm", None)  # type: ignore[attr-defined]
        if realm is not None:
            self._realm = realm
            waiting = self._load()
            if waiting is not None:
                waiting.addCallback(lambda _: self._go_on(super(DurableRequest, self).process))
                return
        super().process()

    def _go_on(self, process: Callable[[], object]) -> None:
        # The client may have gone meanwhile.
        if not self._disconnected:
            process()

    def _load(self) -> Deferred[Any] | None:
        """Look the session up; None: there is nothing to wait for."""
        realm = self._realm
        assert realm is not None
        names = realm.sessions.cookie.name_for
        cookie = self._cookie_header()
        if not cookie or (names[False] not in cookie and names[True] not in cookie):
            return None
        if self._opened is None:
            self._opened = {}
        try:
            if realm.port.inline:
                return None
        except SojournError as error:
            self._opened = dict.fromkeys((False, True), _unavailable(error))
            return None
        secure = bool(self.isSecure())
        wanted = [secure]
        if secure and names[False] != names[True] and names[False] + "=" in cookie:
            wanted.append(False)
        last: Deferred[Any] | None = None
        for https in wanted:
            loading = realm.load(cookie, https)
            loading.addBoth(self._loaded, https)
            last = loading if last is None else last.addCallback(_wait_for(loading))
        return last

    def _loaded(self, found: Any, https: bool) -> None:
        assert self._opened is not None
        if isinstance(found, Failure):
            found = _unavailable(found.value)
        self._opened[https] = found

    def _cookie_header(self) -> str:
        cookie = self._cookie
        if cookie is None:
            lines = self.requestHeaders.getRawHeaders(b"cookie") or ()
            cookie = self._cookie = b"; ".join(lines).decode("latin-1")
        return cookie

    # The session.

    def getSession(self, sessionInterface: Any = None, forceNotSecure: bool = False) -> Any:
        """Return the session, or the component of an interface that it has.

        Raises:
            StoreUnavailable: the store did not answer; left to Twisted it becomes a 503.
        """
        realm = self._realm
        if realm is None:
            # Never processed by a site: made by hand, in a test.
            return super().getSession(sessionInterface, forceNotSecure)
        secure = bool(self.isSecure()) and not forceNotSecure
        session = self._by_hand(secure)
        if session is None:
            session = self._durable_session(realm, secure)
        if sessionInterface:
            return session.getComponent(sessionInterface)
        return session

    def _durable_session(self, realm: Realm, secure: bool) -> Any:
        entries = self._entries
        if entries is None:
            entries = self._entries = {}
        entry = entries.get(secure)
        if entry is not None and not entry.live.over:
            face: Any = entry.face
            face.touch()
            return face
        cookie = ""
        opened: Opened | StoreUnavailable | None = None
        if entry is not None:
            # Ended in this request, or elsewhere: go on with a fresh one.
            self._former = [*(self._former or ()), entry]
        else:
            cookie = self._cookie_header()
            if self._opened:
                opened = self._opened.get(secure)
        if opened is None and not cookie:
            opened = Opened(realm.sessions._env.clock())
        if isinstance(opened, StoreUnavailable):
            opened = self._without(realm, opened)
        try:
            entry = realm.enter(self, opened, cookie, secure)
        except StoreUnavailable as error:
            self._refusal = error
            raise
        entries[secure] = entry
        if self.finished or self._disconnected:
            # Nothing comes any more that would commit it, and let it go.
            realm.reactor.callLater(0, self._commit_rest, self._leave)
        face = entry.face
        if secure:
            self._secureSession = face
        else:
            self._insecureSession = face
        return face

    def _without(self, realm: Realm, error: StoreUnavailable) -> Opened:
        try:
            return realm.sessions._without(error)
        except StoreUnavailable:
            self._refusal = error
            raise

    def _make_session(self, live: Any) -> Any:
        site: Any = self.site
        session = durable(site.sessionFactory(site, live.sid.encode()))
        session._bind(live)
        return session

    def _client_of(self) -> Client:
        address = getattr(self.client, "host", None)
        agent = self.requestHeaders.getRawHeaders(b"user-agent")
        return Client(
            address if isinstance(address, str) else "",
            agent[-1].decode("latin-1") if agent else "",
        )

    def _by_hand(self, secure: bool) -> Any:
        """Return the session that the application has put into `site.sessions` itself, if any."""
        sessions: Any = self.site.sessions  # type: ignore[union-attr]
        # Of a stock site that this request was adopted from it is a dict.
        by_hand = sessions.by_hand if type(sessions) is not dict else None
        if not by_hand:
            return None
        name = b"_".join([_COOKIES[secure], *getattr(self, "sitepath", ())])
        session = by_hand.get(self.getCookie(name))
        if session is not None:
            session.touch()
            setattr(self, "_secureSession" if secure else "_insecureSession", session)
        return session

    def render(self, resrc: Any) -> None:
        """Render a resource; for its time this is the request that speaks for the session."""
        token = CURRENT.set(self)
        try:
            super().render(_Rendered(resrc))
        finally:
            CURRENT.reset(token)

    # The gate.

    @property
    def _looked(self) -> bool:
        """Whether a session was looked at, so that the answer depends on it."""
        return bool(self._entries) or self._refusal is not None

    @property
    def too_late(self) -> bool:
        """Whether its answer can bring no cookie any more but those of a commit under way."""
        return bool(self.startedWriting or self._disconnected or self._waiting is not None)

    def write(self, data: bytes) -> None:
        """Write to the answer; the first bytes leave when the session is committed."""
        if self._passed and self._waiting is None:
            if not self._replaced:
                super().write(data)
            return
        if self._replaced:
            return
        if self._waiting is not None:
            if not isinstance(data, bytes):
                raise TypeError(f"write() takes bytes, not {type(data).__name__}")
            if self._finishing:
                raise RuntimeError(
                    "Request.write called on a request after Request.finish was called."
                )
            self._waiting.append(lambda: self.write(data))
        elif self.startedWriting or self._inFakeHead:
            super().write(data)
        elif not self._looked or self._disconnected:
            self._merge_cookies()
            super().write(data)
        else:
            if not isinstance(data, bytes):
                raise TypeError(f"write() takes bytes, not {type(data).__name__}")
            if not (self._returned and self._written(data)):
                self._gate(lambda: self.write(data), head=True)

    def _written(self, data: bytes) -> bool:
        """Commit and write the whole body, where nothing waits: what the gate comes to then.

        False: it is not so simple, and nothing was done.
        """
        entries, realm = self._entries, self._realm
        if realm is None or not realm.at_once or not entries or len(entries) != 1:
            return False
        ((https, entry),) = entries.items()
        live = entry.live
        if (
            self.code >= 500
            or live.over
            or live.busy
            or live.lock is not None
            or live.speaker is not None
            or self._broken
            or self._former is not None
            or entry.outdated
            or realm.sessions._handlers is not None
        ):
            return False
        try:
            done = realm.commit(entry)
        except Exception:
            self._refuse(Failure())
            return True
        self._set_headers({https: done})
        self._passed = self._settled = True
        super().write(data)
        return True

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Take a producer, when the session is committed."""
        register = super().registerProducer
        if self._replaced:
            producer.stopProducing()
        elif (
            self._waiting is None and (self._passed or self.startedWriting or not self._looked)
        ) or self._disconnected:
            register(producer, streaming)
        else:
            if streaming:
                producer.pauseProducing()
            waiting = _Producer(self, producer, streaming, register)
            if self._waiting is not None:
                self._waiting.append(waiting)
            else:
                self._gate(waiting, head=False)

    def unregisterProducer(self) -> None:
        """Let a producer go."""
        for step in self._waiting or ():
            if isinstance(step, _Producer) and not step.gone:
                step.gone = True
                return
        if self.producer is not None or self._waiting is None:
            super().unregisterProducer()

    def finish(self) -> None:
        """End the answer, when the session is committed."""
        if self._replaced:
            return
        if self._waiting is not None and not self._disconnected:
            if self._finishing:
                super().finish()
                return
            self._finishing = True
            self._waiting.append(self._finish)
        else:
            self._finish()

    def _finish(self) -> None:
        self._finishing = False
        if not self._looked or self._disconnected or self.finished:
            if not self.startedWriting:
                self._merge_cookies()
            super().finish()
        elif not self.startedWriting and not self._passed:
            self._finishing = True
            self._gate(self._finish, head=True)
        elif self._settled:
            self._end()
        else:
            self._commit_rest(self._end)

    def _end(self) -> None:
        self._leave()
        self._passed = True
        super().finish()

    def _gate(self, then: Callable[[], object], head: bool) -> None:
        """Commit, then do what was to be done, and what was called meanwhile."""
        self._waiting = [then]
        realm = self._realm
        assert realm is not None
        try:
            if self.code >= 500:
                self._give_up()
                if self._refusal is not None:
                    # The application made an error page of its own out of the store's failure.
                    raise self._refusal
            result = self._commit()
        except Exception:
            result = Failure()
        if isinstance(result, Deferred):
            result.addBoth(self._committed, head).addErrback(self._failed_later)
        else:
            # Where the body was returned, nothing of the application runs between it and the end.
            self._settled = self._returned
            self._committed(result, head)

    def _committed(self, result: Any, head: bool) -> None:
        if self._disconnected:
            if isinstance(result, Failure):
                log.failure("what an interrupted request changed is lost", result)
            self._drop_waiting()
            return
        if isinstance(result, Failure):
            self._refuse(result)
            return
        if head:
            self._set_headers(result)
            self._passed = True
        self._release()

    def _release(self) -> None:
        waiting = self._waiting
        self._waiting = None
        while waiting:
            waiting.pop(0)()
            if self._waiting is not None and waiting:
                # It waits again, and so does what comes after it.
                self._waiting.extend(waiting)
                return

    def _failed_later(self, reason: Failure) -> None:
        """Answer for what a producer or the like has raised when its turn came."""
        if self._disconnected or self.finished:
            log.failure("{uri} failed after its answer", reason, uri=self.uri)
            self._leave()
        elif self.startedWriting:
            log.failure("{uri} failed, and its answer is cut off", reason, uri=self.uri)
            self.cut_off()
        else:
            self._refuse(reason)

    def cut_off(self) -> None:
        """Send no more of an answer that has begun."""
        channel: Any = self.channel
        if channel is not None and not self._replaced:
            self._replaced = True
            abort = getattr(channel, "abortConnection", None)
            if abort is None:
                channel.loseConnection()
                return
            # A stream of HTTP/2, which tells nobody that it was aborted.
            abort()
            assert self._realm is not None
            self._realm.reactor.callLater(0, self._aborted)

    def _aborted(self) -> None:
        if not self._disconnected:
            self.connectionLost(Failure(ConnectionAborted()))

    def _drop_waiting(self) -> None:
        waiting, self._waiting = self._waiting, None
        for step in waiting or ():
            if isinstance(step, _Producer) and not step.gone:
                step.gone = True
                step.producer.stopProducing()
        self._leave()

    def _uses(self) -> list[Entry]:
        return [*(self._former or ()), *(self._entries or {}).values()]

    def _commit(self, late: bool = False) -> Any:
        """Commit all its sessions; what is to be told, by whether it is the one of https."""
        entries = self._entries
        if entries and len(entries) == 1 and self._former is None and self._refusal is None:
            # The ordinary case, without what several need.
            ((one, entry),) = entries.items()
            done = self._commit_one(entry, late)
            if isinstance(done, Deferred):
                return done.addCallback(lambda done: {one: done})
            return {one: done}
        told: dict[bool, Committed] = {}
        if self._refusal is not None:
            # The page would be another if its session could have been loaded.
            told[bool(self.isSecure())] = NOT_COMMITTED
        return self._commit_each(self._uses(), told, late)

    def _commit_each(self, uses: list[Entry], told: dict[bool, Committed], late: bool) -> Any:
        for number, entry in enumerate(uses):
            done = self._commit_one(entry, late)
            if isinstance(done, Deferred):
                rest = uses[number + 1 :]
                return done.addCallback(self._one_committed, entry, rest, told, late)
            self._note(entry, done, told)
        return told

    def _one_committed(
        self,
        done: Committed,
        entry: Entry,
        rest: list[Entry],
        told: dict[bool, Committed],
        late: bool,
    ) -> Any:
        self._note(entry, done, told)
        return self._commit_each(rest, told, late)

    def _note(self, entry: Entry, done: Committed, told: dict[bool, Committed]) -> None:
        https = self._is_of_https(entry)
        before = told.get(https)
        if before is not None:
            # One ended in this request, and a fresh one took its place.
            done = Committed(
                token=done.token,
                sealed=done.sealed,
                max_age=done.max_age,
                cleared=before.cleared or done.cleared,
                dropped=done.dropped,
            )
        told[https] = done

    def _is_of_https(self, entry: Entry) -> bool:
        for https, one in (self._entries or {}).items():
            if one is entry:
                return https
        return bool(self.isSecure())

    def _commit_one(self, entry: Entry, late: bool) -> Any:
        realm = self._realm
        assert realm is not None
        if not late:
            _up_to_date(entry)
        if self._broken:
            # What was committed before it failed stands, and the browser has to know.
            return with_owed(entry, NOT_COMMITTED, late)
        if entry.lost is not None:
            raise entry.lost

        def commit(_: Any = None) -> Any:
            done = realm.commit(entry, late)
            if late:
                return done
            if isinstance(done, Deferred):
                return done.addCallback(_still_up_to_date, entry)
            return _still_up_to_date(done, entry)

        live = entry.live
        if live.lock is None or live.lock.entry is not entry:
            return commit()

        def unlock(result: Any) -> Any:
            if isinstance(result, Failure):
                self._give_up()
            done = realm.unlock(entry)
            return done.addCallback(lambda _: result) if isinstance(done, Deferred) else result

        from sojourn.web.twisted.driver import as_deferred

        try:
            held = as_deferred(realm.still_locked(entry))
        except SojournError:
            held = as_deferred(Failure())
        return held.addCallback(commit).addBoth(unlock)

    def _commit_rest(self, then: Callable[[], object]) -> None:
        """Commit what was changed after the head; a failure can only be logged."""
        try:
            result = self._commit(late=True)
        except Exception:
            result = Failure()

        def done(result: Any) -> None:
            if isinstance(result, Failure):
                log.failure("{uri}: what was changed is lost", result, uri=self.uri)
            else:
                for one in result.values():
                    lost = too_late(one)
                    if lost:
                        log.error("{uri}: {lost}", uri=self.uri, lost=lost)
            if self._waiting is not None:
                self._waiting.insert(0, then)
                if self._disconnected:
                    self._drop_waiting()
                else:
                    self._release()
            else:
                then()

        if isinstance(result, Deferred):
            self._waiting = []
            self._finishing = True
            result.addBoth(done).addErrback(self._failed_later)
        else:
            done(result)

    def _leave(self) -> None:
        """Its use of sessions is over."""
        realm = self._realm
        for entry in self._uses():
            assert realm is not None
            if entry.live.lock is not None and entry.live.lock.entry is entry:
                realm.unlock(entry)
            realm.leave(entry)
        self._entries = self._former = None

    def connectionLost(self, reason: Any) -> None:
        """Keep what an interrupted request changed."""
        super().connectionLost(reason)
        if not self._entries or self._waiting is not None:
            # A commit is under way already, and goes on.
            return
        self._commit_rest(self._leave)

    # What is told.

    def _set_headers(self, told: dict[bool, Committed]) -> None:
        realm = self._realm
        assert realm is not None
        headers = self.responseHeaders
        for https, done in told.items():
            if done.dropped == "store":
                # It goes on without; to try again at the end would only wait again.
                self._broken = True
            if not done.tells and not _speaks_of_caches(headers):
                # What `with_session` comes to then.
                headers.setRawHeaders(b"Vary", [b"Cookie"])
                headers.setRawHeaders(b"Cache-Control", [b"private"])
                continue
            # A CGI script or WSGI application with sessions of its own: it came after us.
            theirs = {
                line.partition(b"=")[0].decode("latin-1")
                for line in headers.getRawHeaders(b"set-cookie") or ()
            }
            plain = [
                (name.decode("latin-1"), value.decode("latin-1"))
                for name, values in headers.getAllRawHeaders()
                for value in values
            ]
            before = set(plain)
            after = with_session(plain, done, realm.sessions.cookie, https)
            kept = set(after)
            for name in {name for name, _ in before - kept}:
                headers.removeHeader(name)
                for one, value in after:
                    if one == name:
                        headers.addRawHeader(name, value)
            for name, value in after:
                if (name, value) not in before:
                    if name == "Set-Cookie":
                        if value.partition("=")[0] not in theirs:
                            self.cookies.append(value.encode("latin-1"))
                    elif value not in (headers.getRawHeaders(name) or ()):
                        headers.addRawHeader(name, value)
        self._merge_cookies()

    def _tell_owed(self) -> None:
        """Tell the browser of what was committed before this request failed."""
        told: dict[bool, Committed] = {}
        for entry in self._uses():
            if entry.owed is not None:
                self._note(entry, with_owed(entry, NOT_COMMITTED, False), told)
        if told:
            self._set_headers(told)

    def _merge_cookies(self) -> None:
        """Send the cookies that were set as raw headers too: those of WSGI and CGI applications."""
        cookies: list[bytes] = self.cookies
        if cookies:
            raw = self.responseHeaders.getRawHeaders(b"set-cookie") or ()
            cookies[:0] = [cookie for cookie in raw if cookie not in cookies]

    def processingFailed(self, reason: Failure) -> Failure:
        """Answer for what was raised; nothing that the request did is kept then."""
        error = reason.value
        ours = error is self._refusal or isinstance(error, ANSWERED)
        if ours and self._realm is not None and not self.startedWriting:
            self._refuse(reason)
            return reason
        self._give_up()
        result: Failure = super().processingFailed(reason)
        return result

    def _give_up(self) -> None:
        """Keep nothing of what was done, unless the operator wants that."""
        realm = self._realm
        if realm is None or realm.sessions.commit_on_error or self._broken:
            return
        self._broken = True
        for entry in self._uses():
            live = entry.live
            if not live.shared or live.over:
                continue
            if live.entries != [entry]:
                if live.speaker is not entry:
                    continue
                # A login is not to be left to those who share the session.
                live.lose(Conflict("a request that shared the session has failed"), entry)
            live.core._abandon()
            if live.core._record is None:
                live.forget()
            if entry.face is not None:
                entry.face._reset()

    def _refuse(self, reason: Failure) -> None:
        """Answer with an error of ours, in place of what the application has written so far."""
        error = reason.value
        self._give_up()
        for step in self._waiting or ():
            if isinstance(step, _Producer) and not step.gone:
                step.producer.stopProducing()
        self._waiting = None
        self._passed = self._broken = True
        self._encoder = None
        headers = self.responseHeaders
        for name, _ in list(headers.getAllRawHeaders()):
            if name.lower() not in (b"server", b"date"):
                headers.removeHeader(name)
        del self.cookies[:]
        self.etag = self.lastModified = None
        if isinstance(error, (StoreUnavailable, *ANSWERED)):
            if isinstance(error, StoreUnavailable):
                log.failure("{uri}: {error}", reason, uri=self.uri, error=str(error))
            else:
                # Visitors bring these about: no traceback for each.
                log.warn("{uri}: {error}", uri=self.uri, error=str(error))
            status, _, ours, body = failure_of(error)
            self.setResponseCode(status)
            for title, value in ours:
                headers.setRawHeaders(title, [value])
            self._tell_owed()
            super().write(body)
            self._leave()
            super().finish()
        else:
            self._tell_owed()
            super().processingFailed(reason)
            self._leave()
        self._replaced = True


class _Rendered:
    """A resource that is about to be rendered: notes whether it returned its whole answer."""

    __slots__ = ("_resource",)

    def __init__(self, resource: Any) -> None:
        self._resource = resource

    def render(self, request: Any) -> Any:
        body = self._resource.render(request)
        request._returned = isinstance(body, bytes)
        return body

    def __repr__(self) -> str:
        return repr(self._resource)


class _Producer:
    """A producer that waits to be registered."""

    def __init__(
        self, request: Any, producer: Any, streaming: bool, register: Callable[[Any, bool], object]
    ) -> None:
        self.request = request
        self.producer = producer
        self.streaming = streaming
        self.register = register
        self.gone = False

    def __call__(self) -> None:
        if self.gone:
            return
        self.gone = True
        self.register(self.producer, self.streaming)
        if self.streaming:
            self.producer.resumeProducing()


class Request(DurableRequest, server.Request):
    """The stock request, with durable sessions."""


def _up_to_date(entry: Entry) -> None:
    if entry.outdated:
        raise Conflict("a login came while this request was under way; send it again")


def _still_up_to_date(done: Committed, entry: Entry) -> Committed:
    # The login may have been what was committed, or waited for.
    _up_to_date(entry)
    if entry.lost is not None:
        raise entry.lost
    return done


def _wait_for(waiting: Deferred[Any]) -> Callable[[Any], Deferred[Any]]:
    return lambda _: waiting


def _speaks_of_caches(headers: Any) -> bool:
    """Tell whether the application has set a header that is about caches."""
    for name, _ in headers.getAllRawHeaders():
        if len(name) >= 13 and name.lower().endswith(b"-control"):
            return True
    return bool(headers.hasHeader(b"vary"))


def _unavailable(error: BaseException | None) -> StoreUnavailable:
    if isinstance(error, StoreUnavailable):
        return error
    made = StoreUnavailable(f"the session could not be looked up: {error}")
    made.__cause__ = error
    return made


_kinds: dict[type, type] = {}


def _kind(cls: type) -> type:
    made = _kinds.get(cls)
    if made is None:
        if cls is server.Request or cls is http.Request:
            made = Request
        else:
            made = type(cls.__name__, (DurableRequest, cls), {"__module__": cls.__module__})
        _kinds[cls] = made
    return made


def adopt(request: Any, realm: Realm) -> bool:
    """Give a request of a stock site the sessions of a realm; False: it is none of Twisted's."""
    kind = type(request)
    if not issubclass(kind, server.Request):
        return False
    if not issubclass(kind, DurableRequest):
        request.__class__ = _kind(kind)
    if request._realm is not realm:
        if request._entries:
            raise ConfigurationError(
                f"{request.uri!r} uses sessions of one manager already, and comes to a "
                "SessionResource of another; look at no session on the way there"
            )
        # What another manager has found is no session of this one.
        request._realm, request._opened, request._refusal = realm, None, None
    return True


def durable_factory(factory: Any) -> Any:
    """Return what makes durable requests in place of a request class, or of a function."""
    if isinstance(factory, type) and issubclass(factory, DurableRequest):
        return factory
    if isinstance(factory, type) and issubclass(factory, server.Request):
        return _kind(factory)

    def make(*args: Any, **kwargs: Any) -> Any:
        request = factory(*args, **kwargs)
        if isinstance(request, server.Request) and not isinstance(request, DurableRequest):
            request.__class__ = _kind(type(request))
        return request

    return make
