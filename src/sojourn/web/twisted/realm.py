"""A session manager at work on a reactor: who uses which session, and their commits.

One for each manager, so that several Sites (on several ports, or one inside another) share what
is live. Everything here happens in the reactor's thread.
"""

# Twisted has few types; and a Deferred with a callback need not be awaited.
# mypy: disable-error-code="no-untyped-call,unused-awaitable"

from __future__ import annotations

import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from sojourn.core import ending, flows, opening
from sojourn.core.cookie import tokens_in
from sojourn.core.opening import Opened
from sojourn.core.record import Client, Record
from sojourn.core.session import Session
from sojourn.core.token import Token
from sojourn.drivers import run
from sojourn.errors import ConfigurationError, Conflict, SojournError, StoreUnavailable
from sojourn.manager import Committed, SessionManager
from sojourn.web.failure import NOT_COMMITTED, checked
from sojourn.web.twisted._log import log
from sojourn.web.twisted.driver import Port, as_deferred, drive, port_of
from sojourn.web.twisted.live import LiveSession

if TYPE_CHECKING:
    from sojourn.web.twisted.session import DurableSession

__all__ = ["Entry", "Live", "Realm", "manager_of", "realm_of", "with_owed"]

_NOBODY = Client()
_REALM = "_twisted_realm"
_managers: dict[str, SessionManager] = {}


def manager_of(sessions: SessionManager | str | None) -> SessionManager:
    """Return the manager that was given; for the URL of a store, the one of this process.

    Raises:
        ConfigurationError: it is neither.
    """
    if sessions is None:
        return SessionManager()
    if isinstance(sessions, str):
        # One for each URL: a script that is run at each request makes no new one each time.
        manager = _managers.get(sessions)
        if manager is None:
            manager = _managers[sessions] = SessionManager(sessions)
        return manager
    return checked(sessions)


def realm_of(sessions: SessionManager, reactor: Any = None) -> Realm:
    """Return the realm of a manager; made on first use.

    Args:
        sessions: the manager.
        reactor: for a new realm; None: that of this process.
    """
    # With the manager, and so gone with it: a script may make one at each request.
    state = vars(sessions)
    realm: Realm | None = state.get(_REALM)
    if realm is None:
        if reactor is None:
            from twisted.internet import reactor
        realm = state[_REALM] = Realm(sessions, reactor)
    return realm


class Entry:
    """One request's use of a session.

    Attributes:
        live: the session.
        face: what applications hold of it.
        request: None: of nobody's request, such as a commit on its own.
        opened: what its cookie opened.
        generation: the gains of rights that it has seen.
        lost: why what it did may be lost: a commit of another request took it along, and failed.
        locking: who waits for the lock that this request has asked for already.
        owed: what earlier commits have to tell its browser.
    """

    __slots__ = (
        "face",
        "generation",
        "live",
        "locking",
        "lost",
        "opened",
        "owed",
        "request",
    )

    def __init__(
        self, live: Live, request: Any, opened: Opened, face: DurableSession | None
    ) -> None:
        self.live = live
        self.face = face
        self.request = request
        self.opened = opened
        self.generation = 0 if opened.record is None else opened.record.generation
        self.lost: SojournError | None = None
        self.locking: list[Deferred[Any]] | None = None
        self.owed: Committed | None = None

    @property
    def outdated(self) -> bool:
        """Whether a login has come since this request began, and not by itself."""
        live = self.live
        if live.over or not live.shared:
            return False
        core = live.core
        if live.speaker is not None and live.speaker is not self and core._work is not None:
            # One that is not committed yet is not to be seen by others either.
            return bool(core._work.login)
        record = core._record
        return record is not None and record.generation != self.generation


class Live:
    """A session that is in use in this process, or that something of this process hangs on.

    Attributes:
        core: the session of the core.
        shared: whether it is one that several requests may use at once.
        face: what applications hold.
        sid: of it.
        entries: the requests that use it.
        over: it has ended.
        speaker: the request that logged in, renewed or ended it: whose answer tells the browser.
        holder: the request that has its lock, and since when it may have.
    """

    def __init__(self, realm: Realm, core: Session, sid: str) -> None:
        self.realm = realm
        # A `LiveSession`, or a session of one request.
        self.core: Any = core
        self.shared = isinstance(core, LiveSession)
        self.sid = sid
        self._face: weakref.ref[DurableSession] | None = None
        self._kept: DurableSession | None = None
        self.entries: list[Entry] = []
        self.over = False
        self.speaker: Entry | None = None
        self.busy = False
        self.waiting: deque[Deferred[None]] | None = None
        self.pinned = False
        self.watched: float | None = None
        self.watcher: Watcher | None = None
        self.lock: Lock | None = None
        self.locking: deque[Deferred[None]] | None = None

    # A strong reference would make a cycle of the two, and leave them to the garbage collector.
    @property
    def face(self) -> DurableSession | None:
        """What applications hold; None where nobody does any more."""
        return None if self._face is None else self._face()

    @face.setter
    def face(self, face: DurableSession) -> None:
        self._face = weakref.ref(face)

    def entry_of(self, request: Any) -> Entry | None:
        """Return a request's use of it."""
        for entry in self.entries:
            if entry.request is request:
                return entry
        return None

    def pin(self) -> None:
        """Keep it in memory until it ends: something of this process hangs on it."""
        if self.over or not self.shared:
            return
        self.pinned = True
        self._kept = self.face
        self.core.keep()
        self.realm.watch(self)

    def forget(self) -> None:
        """Let whoever comes next load it anew."""
        if self.realm.live.get(self.sid) is self:
            del self.realm.live[self.sid]

    def end(self, reason: str, by: Entry | None) -> None:
        """End it: at once for this process, with the next commit for all."""
        self.core.end(reason)
        self.speaker = by
        self.set_over()
        if not self.entries:
            self.realm.commit_alone(self)

    def set_over(self) -> None:
        """Take note that it has ended, here or elsewhere."""
        if self.over:
            return
        self.over = True
        self.forget()
        self.realm.unwatch(self)
        self._kept = None
        while self.locking:
            self.locking.popleft().errback(
                Conflict(f"session {self.sid} ended while its lock was waited for")
            )

    def lose(self, error: SojournError, by: Entry) -> None:
        """Let no other request say that what it did is kept: it was lost with this one's."""
        for entry in self.entries:
            if entry is not by:
                entry.lost = error

    def ended_elsewhere(self) -> None:
        """Take note that it has ended, and call back who waits for that."""
        face = self.face
        if not self.over:
            self.set_over()
            if face is not None:
                face._ended()


class Watcher:
    """What the manager calls when a session that is watched has ended."""

    __slots__ = ("live",)

    def __init__(self, live: Live) -> None:
        self.live = live

    def __call__(self, sid: str, reason: str) -> None:
        """Be told in any thread: by a sweep or an end of the application's."""
        self.live.realm.reactor.callFromThread(self.live.ended_elsewhere)

    def at_once(self, sid: str, reason: str) -> None:
        """Be told by Twisted's driver, in the reactor's thread."""
        self.live.ended_elsewhere()


class Lock:
    """The lock of a session, held by one request."""

    __slots__ = ("entry", "lease", "owner")

    def __init__(self, entry: Entry, owner: str, lease: float) -> None:
        self.entry = entry
        self.owner = owner
        self.lease = lease


class _Load:
    """A look-up that is under way, and who came since it began."""

    __slots__ = ("later",)

    def __init__(self) -> None:
        self.later: list[Deferred[Opened]] = []


class Realm:
    """A manager at work.

    Attributes:
        live: the sessions in use, by sid.
        at_once: no call on the store waits for anything.
    """

    def __init__(self, sessions: SessionManager, reactor: Any) -> None:
        self.sessions = sessions
        self.reactor = reactor
        self.live: dict[str, Live] = {}
        self._port: Port | None = None
        self.at_once = False
        self._loads: dict[tuple[str, ...], _Load] = {}
        self._timer: Any = None

    @property
    def port(self) -> Port:
        """How the store is reached; opened on first use."""
        port = self._port
        if port is None:
            port = self._port = port_of(self.sessions, self.reactor)
            self.at_once = type(port) is Port
        return port

    def run(self, flow: Any) -> Any:
        """Run a flow; the result, or a Deferred of it."""
        return drive(flow, self.port, self.sessions._handlers)

    # Loading.

    def load(self, cookie: str, https: bool) -> Deferred[Opened]:
        """Find what a Cookie header opens.

        Requests with one cookie that come while it is looked up share one more look-up, which
        begins when that one is done: what was committed meanwhile is in it.
        """
        name = self.sessions.cookie.name_for[https]
        tokens = tokens_in(cookie, name)
        key = (name, *map(str, tokens))
        load = self._loads.get(key)
        waiting: Deferred[Opened] = Deferred()
        if load is not None:
            load.later.append(waiting)
        else:
            self._loads[key] = _Load()
            self._begin_load(key, tokens, [waiting])
        return waiting

    def _begin_load(
        self, key: tuple[str, ...], tokens: list[Token], waiting: list[Deferred[Opened]]
    ) -> None:
        def loaded(result: Any) -> None:
            later = self._loads[key].later
            if later:
                self._loads[key] = _Load()
                self._begin_load(key, tokens, later)
            else:
                del self._loads[key]
            for one in waiting:
                one.callback(result)

        try:
            found = self.run(opening.open_session(tokens, self.sessions._env))
        except Exception:
            found = Failure()
        if isinstance(found, Deferred):
            found.addBoth(loaded)
        else:
            loaded(found)

    # Entering and leaving.

    def enter(
        self,
        request: Any,
        opened: Opened | None,
        cookie: str,
        https: bool,
    ) -> Entry:
        """Let a request use its session.

        Args:
            request: which.
            opened: what its cookie opened; None: it is looked up now, which never waits then.
            cookie: the Cookie header.
            https: which of the two cookies.

        Raises:
            StoreUnavailable: the store did not answer.
        """
        sessions = self.sessions
        if sessions._carried:
            core = sessions.session(cookie, https=https, client=request._client_of())
            core.status  # noqa: B018 - loads it
            live = Live(self, core, core.sid)
            live.face = face = request._make_session(live)
            entry = Entry(live, request, core._opened, face)
            live.entries.append(entry)
            return entry
        if opened is None:
            opened = sessions.open(cookie, https)
        record = opened.record
        known = None if record is None else self.live.get(record.sid)
        if known is not None and record is not None:
            core = known.core
            if core._record is not None and core._record.generation != record.generation:
                # A login came in another process. Who began before it does not go on with who
                # came with its cookie.
                if core._record.version < record.version:
                    known.forget()
                known = None
            elif core._record is None or record.version > core._record.version:
                known.core.rebase(record, opened.data)
                if known.face is not None:
                    known.face._refresh()
            if known is not None:
                if opened.notes:
                    core._working().notes.extend(opened.notes)
                known.face.touch()  # type: ignore[union-attr]
        if known is None:
            found = opened
            # Of one that exists the client was noted when it was made; a login notes its own.
            client = request._client_of() if record is None else _NOBODY
            core = LiveSession(sessions._env, lambda: found, client)
            core._stand(found)
            known = Live(self, core, core.sid if record is None else record.sid)
            self.live.setdefault(known.sid, known)
            try:
                known.face = face = request._make_session(known)
            except BaseException:
                known.forget()
                raise
        else:
            face = known.face
        entry = Entry(known, request, opened, face)
        known.entries.append(entry)
        return entry

    def leave(self, entry: Entry) -> None:
        """A request is over."""
        live = entry.live
        if entry in live.entries:
            live.entries.remove(entry)
        if live.speaker is entry:
            live.speaker = None
        if live.entries:
            return
        if not live.pinned:
            live.forget()
        elif live.core._record is None and not live.busy:
            # It was never stored, so nobody can come back to it.
            live.ended_elsewhere()

    # Committing.

    def commit(self, entry: Entry, late: bool = False) -> Any:
        """Write what was done to a session; a `Committed`, or a Deferred of it.

        One commit of a session runs at a time.
        """
        live = entry.live
        if live.busy:
            turn: Deferred[None] = Deferred()
            if live.waiting is None:
                live.waiting = deque()
            live.waiting.append(turn)
            return turn.addCallback(lambda _: self._commit(entry, late))
        return self._commit(entry, late)

    def _commit(self, entry: Entry, late: bool) -> Any:
        live = entry.live
        sessions, core = self.sessions, live.core
        try:
            face = live.face
            if face is not None and not live.over:
                face._collect()
            if not live.shared:
                return with_owed(entry, sessions.commit(core, late=late), late)
            if core._settled():
                return self._next(live, with_owed(entry, NOT_COMMITTED, late))
            if self.at_once and sessions._handlers is None:
                return self._next(live, self._commit_at_once(entry, late))
            fork = core.fork(entry.opened)
            if fork is None:
                return self._next(live, with_owed(entry, NOT_COMMITTED, late))
        except BaseException:
            self._next(live, None)
            raise

        def failed(error: Any) -> Any:
            if isinstance(error, StoreUnavailable):
                try:
                    done = sessions._uncommitted(error, fork)
                except StoreUnavailable:
                    live.forget()
                    live.lose(error, entry)
                    raise
                live.forget()
                return done
            # What it was made of is gone; who comes next begins with what is stored.
            live.forget()
            if isinstance(error, SojournError):
                live.lose(error, entry)
            raise error

        def committed(done: Committed) -> Committed:
            sessions._note(done)
            self._take_in(entry, fork, core._record, done)
            return with_owed(entry, done, late)

        live.busy = True
        try:
            try:
                result = self.run(flows.commit(fork, sessions._env, late))
            except SojournError as error:
                result = failed(error)
        except BaseException:
            self._next(live, None)
            raise
        if not isinstance(result, Deferred):
            return self._next(live, committed(result))

        def unanswered(failure: Failure) -> Any:
            return failed(failure.value)

        waiting: Deferred[Any] = result
        waiting.addErrback(unanswered)
        waiting.addCallback(committed)
        return waiting.addBoth(lambda answer: self._next(live, answer))

    def _commit_at_once(self, entry: Entry, late: bool) -> Committed:
        """Commit where nothing is waited for, so that nothing is done to the session meanwhile."""
        live, sessions = entry.live, self.sessions
        core = live.core
        before = core._record
        core._opened = entry.opened
        changes = core._collect()
        if not changes and core._nothing_else():
            return with_owed(entry, NOT_COMMITTED, late)
        try:
            done = run(flows.commit(core, sessions._env, late, changes), self.port.store)
        except SojournError as error:
            live.forget()
            if not isinstance(error, StoreUnavailable):
                raise
            done = sessions._uncommitted(error, core)
        sessions._note(done)
        self._take_in(entry, core, before, done)
        return with_owed(entry, done, late)

    def _next(self, live: Live, answer: Any) -> Any:
        """Let the next one commit who waits for that."""
        live.busy = False
        if live.waiting:
            live.waiting.popleft().callback(None)
        return answer

    def _take_in(self, entry: Entry, fork: Session, before: Record | None, done: Committed) -> None:
        live = entry.live
        core = live.core
        entry.opened = fork._opened
        speaker = live.speaker or entry
        live.speaker = None
        record = fork._record
        if record is not None and not live.over:
            if before is not None and record.generation != before.generation:
                speaker.generation = record.generation
            elif before is None:
                entry.generation = record.generation
            if fork is not core:
                core.join(fork)
            if done.retries and live.face is not None:
                live.face._refresh()
            if live.pinned:
                self.watch(live)
        if speaker is not entry and speaker in live.entries and done.tells:
            # Its answer tells the browser, and this one does not.
            _owe(speaker, done)
            done.token, done.sealed, done.max_age, done.cleared = None, None, None, False
        if done.dropped == "gone" and not live.over:
            live.ended_elsewhere()
        elif done.dropped in ("login", "damaged"):
            live.forget()

    def commit_alone(self, live: Live) -> Deferred[Any]:
        """Commit outside of any request; what goes wrong is logged."""
        opened = live.core._opened
        entry = Entry(live, None, opened, live.face)
        try:
            waiting = as_deferred(self.commit(entry, late=True))
        except Exception:
            log.failure("what was done to session {sid} is lost", sid=live.sid)
            return as_deferred(NOT_COMMITTED)
        return waiting.addErrback(
            lambda failure: log.failure(
                "what was done to session {sid} is lost", failure, sid=live.sid
            )
        )

    # The ends that this process waits for: one timer for all of them.

    def watch(self, live: Live) -> None:
        """Call its watcher when it ends."""
        deadline = live.core.deadline
        if live.watched is None or deadline < live.watched:
            self.unwatch(live)
            live.watched = deadline
            live.watcher = Watcher(live)
            self.sessions.watch(live.core, live.watcher)
            self._wake_at(deadline)

    def unwatch(self, live: Live) -> None:
        """No more."""
        if live.watched is not None:
            assert live.watcher is not None
            self.sessions.unwatch(live.sid, live.watcher)
            live.watched = live.watcher = None
            handlers = self.sessions._handlers
            if handlers is not None and not handlers.watches and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _wake_at(self, deadline: float) -> None:
        delay = max(0.0, deadline - self.sessions._env.clock())
        timer = self._timer
        if timer is not None and timer.active():
            if timer.getTime() <= self.reactor.seconds() + delay:
                return
            timer.cancel()
        self._timer = self.reactor.callLater(delay, self._look)

    def _look(self) -> None:
        """Ask the store about the sessions whose known deadline has passed."""
        self._timer = None
        handlers = self.sessions._handlers
        if handlers is None:
            return
        clock = self.sessions._env.clock
        try:
            looked = as_deferred(self.run(handlers.watches.check(clock())))
        except Exception:
            looked = as_deferred(Failure())

        def again(_: Any) -> None:
            following = handlers.watches.next_deadline()
            if following is not None:
                # A moment later, so that it is not looked at before it is over; and where the
                # store is down not at once again.
                self._wake_at(max(following, clock() + 1.0) if failed else following)

        failed: list[bool] = []

        def lost(failure: Failure) -> None:
            failed.append(True)
            log.failure("ends of sessions could not be looked for; again soon", failure)

        looked.addErrback(lost).addCallback(again)

    # Locks.

    def lock(self, entry: Entry, wait: float, lease: float) -> Deferred[Any]:
        """Take the lock of a session for a request; fires with its face."""
        live = entry.live
        if entry.locking is not None:
            # It is asked for already.
            waiting: Deferred[Any] = Deferred()
            entry.locking.append(waiting)
            return waiting
        if live.lock is not None and live.lock.entry is entry:
            return as_deferred(live.face)
        if not live.shared:
            raise Conflict("exclusive(): a session that its cookie holds cannot be locked")
        if live.core.is_new:
            # Nobody else can have it yet.
            return as_deferred(live.face)
        owner, env = self.sessions._owner(), self.sessions._env
        held = Lock(entry, owner, lease)
        turn: Deferred[None] = Deferred()
        # The requests of this process take turns here, and only then ask the store.
        if live.lock is None:
            live.lock = held
            turn.callback(None)
        else:
            if live.locking is None:
                live.locking = deque()
            live.locking.append(turn)
            timer = self.reactor.callLater(wait, self._give_up_turn, live, turn, wait)
            turn.addBoth(lambda answer: (timer.active() and timer.cancel(), answer)[1])

        def gone() -> Conflict:
            return Conflict(f"the request was over before it had the lock of session {live.sid}")

        def mine(_: Any) -> Any:
            live.lock = held
            if entry not in live.entries:
                raise gone()
            return self.commit(entry)

        def committed(_: Any) -> Any:
            return self.run(ending.acquire(live.sid, owner, lease, env, wait))

        def acquired(got: bool) -> Any:
            if not got:
                raise Conflict(
                    f"another request has held the lock of session {live.sid} for {wait:g} s; "
                    "try again"
                )
            if entry not in live.entries:
                # Given back already, before the store had given it.
                released = as_deferred(self.run(ending.release(live.sid, owner, env)))
                return released.addCallback(lambda _: Failure(gone()))
            return self.run(opening.open_session(_own(entry), env))

        def looked(opened: Opened) -> Any:
            record = opened.record
            if record is None or live.over:
                raise Conflict(f"session {live.sid} ended while its lock was waited for")
            if live.core._record is None or record.version > live.core._record.version:
                live.core.rebase(record, opened.data)
                if live.face is not None:
                    live.face._refresh()
            return live.face

        def lost(failure: Failure) -> Any:
            return as_deferred(self.unlock(entry)).addCallback(lambda _: failure)

        def tell(answer: Any) -> Any:
            others, entry.locking = entry.locking or (), None
            for one in others:
                one.callback(answer)
            return answer

        entry.locking = []
        result: Deferred[Any] = Deferred()
        turn.addCallback(mine).addCallback(committed).addCallback(acquired).addCallback(looked)
        turn.addErrback(lost).addBoth(tell).addBoth(result.callback)
        return result

    def _give_up_turn(self, live: Live, turn: Deferred[None], wait: float) -> None:
        assert live.locking is not None
        live.locking.remove(turn)
        turn.errback(
            Conflict(
                f"another request has held the lock of session {live.sid} for {wait:g} s; try again"
            )
        )

    def still_locked(self, entry: Entry) -> Any:
        """Make sure, before the commit, that nobody else can have had the lock meanwhile.

        Raises:
            Conflict: its lease ran out.
        """
        lock = entry.live.lock
        assert lock is not None
        sid, lease = entry.live.sid, lock.lease

        def extended(mine: bool) -> None:
            if not mine:
                raise Conflict(
                    f"the lock of session {sid} ran out after {lease:g} s, and what was done "
                    "under it is not kept; give exclusive() a longer lease"
                )

        answer = self.run(ending.extend(sid, lock.owner, lease, self.sessions._env))
        if isinstance(answer, Deferred):
            return answer.addCallback(extended)
        return extended(answer)

    def unlock(self, entry: Entry) -> Any:
        """Give the lock back that a request has; at once, or a Deferred."""
        live = entry.live
        lock = live.lock
        if lock is None or lock.entry is not entry:
            return None

        def released(answer: Any) -> None:
            if isinstance(answer, Failure):
                # It ends by itself.
                log.failure("the lock of session {sid} is held on", answer, sid=live.sid)
            live.lock = None
            if live.locking:
                live.locking.popleft().callback(None)

        try:
            answer = self.run(ending.release(live.sid, lock.owner, self.sessions._env))
        except SojournError:
            answer = Failure()
        if isinstance(answer, Deferred):
            return answer.addBoth(released)
        return released(answer)


def _own(entry: Entry) -> list[Token]:
    token = entry.opened.token
    if token is None:
        raise ConfigurationError("the request has no session that could be locked")
    return [token]


def _owe(entry: Entry, done: Committed) -> None:
    """Note what the browser is to be told in a request's answer."""
    owed = Committed(done.token, done.sealed, done.max_age, done.cleared)
    before = entry.owed
    if before is not None:
        if not owed.tells:
            owed.token, owed.sealed, owed.max_age = before.token, before.sealed, before.max_age
        owed.cleared |= before.cleared
    entry.owed = owed


def with_owed(entry: Entry, done: Committed, late: bool) -> Committed:
    """Add what earlier commits have to tell the browser: they had no answer yet."""
    if done.tells:
        _owe(entry, done)
    owed = entry.owed
    if late or owed is None:
        return done
    told: Committed = Committed(
        token=owed.token,
        sealed=owed.sealed,
        max_age=owed.max_age,
        cleared=owed.cleared,
        wrote=done.wrote,
        retries=done.retries,
        overwritten=done.overwritten,
        dropped=done.dropped,
        events=done.events,
    )
    return told
