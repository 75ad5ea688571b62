"""Whole requests on a store, with faults at each call: what visitors are promised holds.

The checks of `contract` ask a store; these put what is built upon it to work: opening, committing,
logging in, ending, sweeping. A store that passes all others and not these is at odds with the core
in a way that no single call shows.
"""

from __future__ import annotations

import time
from typing import Any

from sojourn.core.calls import Count, Create, Delete, Due, Flow, List, Load, Replace, Touch
from sojourn.core.ending import SKEW
from sojourn.core.record import ENDED, ENDING, LIVE, MARK, Record
from sojourn.core.session import Session
from sojourn.core.token import Token
from sojourn.errors import StoreUnavailable
from sojourn.testing.checking import Together, check
from sojourn.testing.clock import Clock
from sojourn.testing.faults import Crash, Fault
from sojourn.testing.records import expect, expect_same, new_record
from sojourn.testing.requests import Act, Point, Site, every_order, every_point, recorded, sids

__all__ = ["listed_in_pages", "merges_of_many_are_all_kept"]

_AGAIN = (Fault.LOST_REPLY, Fault.TWICE)
_CRASHES = (Fault.CRASH_BEFORE, Fault.CRASH_AFTER)


def _site(clock: Clock | None = None, **rules: Any) -> Site:
    """Return an application; several in one check share a clock, as marks are times too."""
    return Site(clock or Clock(time.time()), **rules)


def _add(session: Session) -> None:
    session.add("n")
    session.append("log", "more")


def _renew_and_add(session: Session) -> None:
    session.renew()
    _add(session)


def _login(session: Session, user: str = "alice") -> None:
    session.login(user)
    _add(session)


def _login_as(user: str) -> Act:
    return lambda session: _login(session, user)


def _logout(session: Session) -> None:
    session.end("user")


def _whole(session: Session, what: str) -> int:
    """Return `n`; it must fit `log`, which every request changes together with it."""
    number, log = session.get("n", 0), session.get("log", [])
    expect(number == len(log), f"half a request was written: n = {number}, log = {log}, {what}")
    return int(number)


def _gone(site: Site, token: Token, what: str) -> Flow[None]:
    """Check that a session is over: for a cookie, and in the store."""
    session = yield from site.seen(token)
    expect(session.is_new, f"a session that was ended is open again, {what}")
    record = yield Load(token.sid)
    over = record is None or (record.status == ENDED and not record.data and record.user is None)
    expect(over, f"a session that was ended is {record}, {what}")


# Lost answers, and calls that arrive twice.


@check
def a_lost_reply_adds_once() -> Flow[None]:
    """An `add` whose answer got lost at any call is made again, and counted once."""
    site = _site()
    for act in (_add, _renew_and_add, _login):
        for point in every_point(*_AGAIN):
            token = yield from site.arrive()
            done = yield from point.on(site.visit(token, act))
            expect(done.wrote and not done.dropped, f"the request was not kept ({done}), {point}")
            session = yield from site.seen(done.token or token)
            expect_same(_whole(session, repr(point)), 2, f"n after one add with {point}")


@check
def a_lost_reply_makes_one_session() -> Flow[None]:
    """A new session whose answer got lost at any call is there once, and its cookie opens it."""
    clock = Clock(time.time())
    for point in every_point(*_AGAIN):
        site = _site(clock)
        before = yield Count()
        token = yield from point.on(site.arrive())
        session = yield from site.seen(token)
        expect_same(_whole(session, repr(point)), 1, f"n of a new session with {point}")
        expect_same((yield Count()), before + 1, f"sessions after one was made with {point}")


@check
def a_lost_reply_ends_for_good() -> Flow[None]:
    """A logout whose answer got lost at any call has ended the session, and its handlers ran."""
    clock = Clock(time.time())
    for keep in (86400.0, 0.0):
        for point in every_point(*_AGAIN):
            site = _site(clock, tombstone=keep)
            token = yield from site.arrive()
            done = yield from point.on(site.visit(token, _logout))
            expect(done.cleared, f"a logout was not reported as one, {point}")
            # An end whose first answer was lost leaves its handlers to the next sweep.
            site.clock.advance(site.rules.lease + SKEW)
            yield from site.sweep()
            yield from _gone(site, token, repr(point))
            ran = [one for one in site.handled if one[0] == token.sid]
            expect(len(ran) > 0, f"no handler ran for a session that was ended, {point}")
            expect_same(ran[0], (token.sid, "user", 1), f"what the handler was told, {point}")


@check
def no_answer_counts_at_most_once() -> Flow[None]:
    """A request that failed for want of an answer was done once or not at all, and all of it."""
    site = _site()
    for act in (_add, _renew_and_add):
        for point in every_point(Fault.UNAVAILABLE):
            token = yield from site.arrive()
            try:
                yield from point.on(site.visit(token, act))
            except StoreUnavailable:
                pass
            else:
                expect(not point.met, f"a call had no answer, and nobody was told, {point}")
            # The old cookie works: its time of grace is not over.
            session = yield from site.seen(token)
            number = _whole(session, repr(point))
            expect(number in (1, 2), f"n is {number} after one add, {point}")


@check
def a_late_duplicate_does_nothing() -> Flow[None]:
    """Writes that arrive once more after others have followed change nothing, and raise nothing."""
    clock = Clock(time.time())
    for act in (_add, _renew_and_add, _login, Session.touch):
        site = _site(clock)
        writes: list[Any] = []
        token = yield from recorded(site.arrive(), writes)
        done = yield from recorded(site.visit(token, act), writes)
        token = done.token or token
        yield from site.visit(token, _add)
        before = yield Load(token.sid)
        late = [call for call in writes if isinstance(call, Create | Replace | Touch)]
        late = [call for call in late if _sid_of(call) == token.sid]
        expect(len(late) > 1, "the requests wrote nothing")
        for call in late:
            yield call
        expect_same((yield Load(token.sid)), before, "a record after late duplicates")
        yield from site.visit(token, _logout)
        for call in late:
            yield call
        yield from _gone(site, token, "after late duplicates")


def _sid_of(call: Any) -> str:
    sid: str = call.sid if isinstance(call, Touch) else call.record.sid
    return sid


# Processes that die between two calls.


@check
def a_crash_leaves_nothing_half_written() -> Flow[None]:
    """A process that dies at any call of a request has done all of it or nothing."""
    site = _site()
    for act in (_add, _renew_and_add, _login):
        for point in every_point(*_CRASHES):
            token = yield from site.arrive()
            before = yield Load(token.sid)
            yield from _dying(point, site.visit(token, act))
            record = yield Load(token.sid)
            opened = yield from site.seen(token)
            if record.version == before.version:
                expect_same(
                    _whole(opened, repr(point)), 1, f"n, though nothing was written, {point}"
                )
            elif act is _login:
                expect(opened.is_new, f"the cookie from before a login opens it, {point}")
            else:
                expect_same(
                    _whole(opened, repr(point)), 2, f"n of a request that was written, {point}"
                )
            # And it works on for whoever has a cookie that opens it.
            if not opened.is_new:
                done = yield from site.visit(token, _add)
                expect(done.wrote, f"the next request was not kept, {point}")
            yield from site.visit(None, _login)


@check
def a_crash_in_a_login_gives_its_place_back() -> Flow[None]:
    """Logins that die at any call never lock their user out for more than a minute."""
    clock = Clock(time.time())
    for point in every_point(*_CRASHES):
        site = _site(clock, max_sessions=1, deny_new=True)
        user = f"user {point}"
        token = yield from site.arrive()
        yield from _dying(point, site.visit(token, _login_as(user)))
        live = yield from site.of_user(user)
        expect(len(live) <= 1, f"{len(live)} sessions, allowed is 1, {point}")
        site.clock.advance(61.0)
        for record in live:
            yield from site.end(record.sid)
        token = yield from site.arrive(_login_as(user))
        live = yield from site.of_user(user)
        expect_same(sids(live), [token.sid], f"the sessions of a user who logged in, {point}")


@check
def a_crash_in_an_end_is_made_good() -> Flow[None]:
    """An end that dies at any call was not begun, or it is final, and a sweep runs its handlers."""
    clock = Clock(time.time())
    for point in every_point(*_CRASHES):
        site = _site(clock)
        token = yield from site.arrive()
        yield from _dying(point, site.end(token.sid))
        session = yield from site.seen(token)
        if not session.is_new:
            expect_same((yield Load(token.sid)).status, LIVE, f"status of a live session, {point}")
            expect_same(site.handled, [], f"handlers of the end of a live session, {point}")
            yield from site.end(token.sid)
        # Whoever wrote before the end was begun must not bring it back.
        done = yield from site.visit(token, _add)
        expect(done.token is None or done.token.sid != token.sid, f"it came back, {point}")
        site.clock.advance(site.rules.lease + SKEW)
        yield from site.sweep(f"after {point}")
        yield from _gone(site, token, repr(point))
        ran = [one for one in site.handled if one[0] == token.sid]
        expect(len(ran) > 0, f"no handler ran, {point}")
        expect_same({*ran}, {(token.sid, "user", 1)}, f"what the handlers were told, {point}")
        expect_same((yield List(status=ENDING)), [], f"sessions that are still ending, {point}")


@check
def a_crash_in_ending_all_is_made_good() -> Flow[None]:
    """Ending all sessions of a user, begun anew after a death at any call, leaves none."""
    clock = Clock(time.time())
    for point in every_point(*_CRASHES):
        site, user = _site(clock), f"user {point}"
        tokens = yield from site.arrivals(3, _login_as(user))
        other = yield from site.arrive(_login_as("bob"))
        yield from _dying(point, site.end_all(user))
        site.clock.advance(1.0)
        yield from site.end_all(user)
        site.clock.advance(site.rules.lease + SKEW)
        yield from site.sweep(f"after {point}")
        for token in tokens:
            yield from _gone(site, token, repr(point))
        ran = {sid for sid, _, _ in site.handled}
        expect_same(ran, {token.sid for token in tokens}, f"whose handlers ran, {point}")
        session = yield from site.seen(other)
        expect_same(session.user, "bob", f"the user of another's session, {point}")
        yield from site.end(other.sid)


@check
def a_crash_in_a_sweep_is_made_good() -> Flow[None]:
    """A sweep that dies at any call is followed by one that ends what is over, and nothing else."""
    clock = Clock(time.time())
    for point in every_point(*_CRASHES):
        site = _site(clock)
        over = yield from site.arrivals(2)
        ended = yield from site.arrive()
        site.clock.advance(3600.0 + SKEW)
        alive = yield from site.arrive()
        yield Delete(ended.sid)
        yield from _dying(point, site.sweep("first", page=1))
        # The lease of the sweep, and of what it had claimed.
        site.clock.advance(2 * site.rules.lease + SKEW)
        swept = yield from site.sweep("second", page=1)
        expect(not swept.busy, f"a sweep that died has the lock for ever, {point}")
        for token in over:
            yield from _gone(site, token, repr(point))
        ran = {sid for sid, _, _ in site.handled}
        expect_same(ran, {token.sid for token in over}, f"whose handlers ran, {point}")
        expect({reason for _, reason, _ in site.handled} == {"idle"}, f"reasons, {point}")
        session = yield from site.seen(alive)
        expect_same(_whole(session, repr(point)), 1, f"n of a session that is not over, {point}")
        yield from site.end(alive.sid)


def _dying(point: Point, flow: Flow[Any]) -> Flow[None]:
    try:
        yield from point.on(flow)
    except Crash:
        flow.close()


# Requests at the same time.


@check
def requests_merge_in_every_order() -> Flow[None]:
    """Two requests that add, renew or touch: in every order of their calls nothing is lost."""
    site = _site()
    acts = (_add, _renew_and_add, Session.touch)
    for first in acts:
        for second in (_add, _renew_and_add):
            boxes: list[Token] = []

            def begin(first: Any = first, second: Any = second) -> Flow[list[Flow[Any]]]:
                boxes.append((yield from site.arrive()))  # noqa: B023
                site.clock.advance(1.0)
                return [site.visit(boxes[-1], act) for act in (first, second)]  # noqa: B023

            told = yield from every_order(begin)
            for token, results in zip(boxes, told, strict=True):
                what = f"{first.__name__} and {second.__name__}"
                kept = sum(
                    done.wrote and act is not Session.touch
                    for done, act in zip(results, (first, second), strict=True)
                )
                expect(not any(done.dropped for done in results), f"a change was dropped, {what}")
                session = yield from site.seen(token)
                expect_same(_whole(session, what), 1 + kept, f"n after {what}")


@check
def three_requests_merge_in_every_order() -> Flow[None]:
    """Three requests that add: in every order of their calls all three are counted."""
    site = _site()
    boxes: list[Token] = []

    def begin() -> Flow[list[Flow[Any]]]:
        boxes.append((yield from site.arrive()))
        return [site.visit(boxes[-1], _add) for _ in range(3)]

    for done in (yield from every_order(begin)):
        expect(all(one.wrote and not one.dropped for one in done), f"a change was lost: {done}")
    for token in boxes:
        session = yield from site.seen(token)
        expect_same(_whole(session, "three requests"), 4, "n after three adds")


@check
def no_request_outlives_a_logout_in_any_order() -> Flow[None]:
    """A logout against an add, a renewal, a login: in every order the session is over."""
    site = _site()
    for act in (_add, _renew_and_add, _login, Session.touch):
        boxes: list[Token] = []

        def begin(act: Any = act) -> Flow[list[Flow[Any]]]:
            boxes.append((yield from site.arrive()))  # noqa: B023
            site.clock.advance(1.0)
            return [site.visit(boxes[-1], act), site.end(boxes[-1].sid)]  # noqa: B023

        told = yield from every_order(begin)
        for token, (done, ended) in zip(boxes, told, strict=True):
            expect(ended, "an end of a live session was not reported as one")
            for one in {token, done.token or token}:
                if one.sid == token.sid:
                    yield from _gone(site, one, f"after {act.__name__}")
        yield from site.end_all("alice")


@check
def a_login_and_ending_all_in_every_order() -> Flow[None]:
    """A login that was called for before all sessions of its user were ended is over then."""
    site = _site(handlers=frozenset())
    begun: list[dict[str, Any]] = []

    def begin() -> Flow[list[Flow[Any]]]:
        at: dict[str, Any] = {"token": (yield from site.arrive()), "user": f"user {len(begun)}"}
        begun.append(at)
        site.clock.advance(1.0)
        return [site.visit(at["token"], _logs_in(at)), _ends_all(at)]

    def _logs_in(at: dict[str, Any]) -> Act:
        def act(session: Session) -> None:
            at["login"] = site.clock()
            session.login(at["user"])

        return act

    def _ends_all(at: dict[str, Any]) -> Flow[Any]:
        # Something that others can come before.
        yield Load(at["token"].sid)
        site.clock.advance(1.0)
        at["end"] = site.clock()
        return (yield from site.end_all(at["user"]))

    told = yield from every_order(begin)
    before = 0
    for at, (done, _) in zip(begun, told, strict=True):
        live = yield from site.of_user(at["user"])
        if at["login"] < at["end"]:
            before += 1
            expect_same(sids(live), [], "sessions of a login from before all were ended")
        elif done.dropped:
            expect_same(sids(live), [], "sessions of a login that was said to have failed")
    expect(0 < before < len(begun), "the orders were not all there are")


@check
def merges_of_many_are_all_kept(callers: int = 6, requests: int = 6) -> Flow[None]:
    """Threads or tasks that add to one session by whole requests: all are counted, all or nothing.

    Args:
        callers: how many.
        requests: of each.
    """
    site = _site()
    token = yield from site.arrive()

    def work() -> Flow[int]:
        kept = 0
        for _ in range(requests):
            done = yield from site.visit(token, _add)
            kept += done.wrote and not done.dropped
        return kept

    kept = sum((yield Together([work() for _ in range(callers)])))
    session = yield from site.seen(token)
    expect_same(kept, callers * requests, "requests that were kept")
    expect_same(_whole(session, "after many requests"), 1 + kept, "n after many requests")


# Workers whose clocks differ.


@check
def skewed_clocks_end_none_early() -> Flow[None]:
    """Two workers up to a minute apart: neither ends early what lives by the other's clock."""
    clock = Clock(time.time())
    for ahead in (-60.0, -30.0, 0.0, 30.0, 60.0):
        site = _site(clock, idle_timeout=300.0)
        other = site.other(ahead)
        token = yield from site.arrive()
        site.clock.advance(299.0)
        yield from other.sweep()
        session = yield from site.seen(token)
        expect(not session.is_new, f"ended 1 s early by a sweep that is {ahead:g} s ahead")
        done = yield from site.visit(token, _add)
        expect(done.wrote and not done.dropped, f"the last use was dropped, {ahead:g} s ahead")
        # The use counts from both clocks.
        site.clock.advance(299.0)
        yield from other.sweep()
        session = yield from site.seen(token)
        expect_same(_whole(session, f"{ahead:g} s ahead"), 2, f"n, {ahead:g} s ahead")
        site.clock.advance(1.0 + 2 * SKEW)
        yield from other.sweep()
        yield from _gone(site, token, f"swept by a worker that is {ahead:g} s ahead")
        yield from _gone(other, token, f"swept by a worker that is {ahead:g} s ahead")


@check
def skewed_clocks_never_move_back() -> Flow[None]:
    """A worker whose clock is behind takes nothing from a session that another has extended."""
    clock = Clock(time.time())
    for ahead in (-60.0, 60.0):
        site = _site(clock, idle_timeout=300.0)
        other = site.other(ahead)
        token = yield from site.arrive()
        for act in (_add, Session.touch, _renew_and_add):
            first = other if ahead > 0 else site
            second = site if ahead > 0 else other
            done = yield from first.visit(token, act)
            token = done.token or token
            before = yield Load(token.sid)
            done = yield from second.visit(token, act)
            token = done.token or token
            after = yield Load(token.sid)
            expect(after.seen >= before.seen, f"seen moved back by {before.seen - after.seen} s")
            expect(after.deadline >= before.deadline, "the deadline moved back")
            expect(after.version >= before.version, "the version moved back")
            site.clock.advance(1.0)
        yield from site.end(token.sid)


@check
def skewed_clocks_raise_nothing() -> Flow[None]:
    """What one worker has ended stays ended for another, however far its clock is behind."""
    clock = Clock(time.time())
    for ahead in (-60.0, 60.0):
        site = _site(clock, idle_timeout=300.0)
        other = site.other(ahead)
        for ended_by, used_by in ((site, other), (other, site)):
            token = yield from site.arrive(lambda session: session.login("alice"))
            site.clock.advance(1.0)
            late = used_by.visit(token, _add)
            # It has loaded the session, and then the other ends it.
            answer = yield late.send(None)
            yield from ended_by.end(token.sid)
            done = yield from _rest(late, answer)
            expect_same(done.dropped, "gone", "why a request after the end was dropped")
            for worker in (site, other):
                yield from _gone(worker, token, "ended by a worker with another time")
        token = yield from site.arrive(lambda session: session.login("alice"))
        site.clock.advance(1.0)
        yield from other.end_all("alice")
        yield from _gone(site, token, "all sessions ended by a worker with another time")


def _rest(flow: Flow[Any], answer: Any) -> Flow[Any]:
    """Go on with a flow that has begun."""
    while True:
        try:
            call = flow.send(answer)
        except StopIteration as stop:
            return stop.value
        answer = yield call


# Pages.


@check
def sweeps_of_any_page_size() -> Flow[None]:
    """Sweeps that claim 1, 2 or 3 sessions at once end all that are over, each once."""
    clock = Clock(time.time())
    for page in (1, 2, 3):
        site = _site(clock)
        over = yield from site.arrivals(7)
        used = over.pop(0)
        site.clock.advance(1800.0)
        yield from site.visit(used, Session.touch)
        site.clock.advance(1800.0 + SKEW)
        swept = yield from site.sweep(f"by {page}", page)
        expect_same(swept.ended, len(over), f"how many a sweep by {page} ended")
        ran = sorted(sid for sid, _, _ in site.handled)
        expect_same(ran, sorted(token.sid for token in over), f"whose handlers ran, by {page}")
        for token in over:
            yield from _gone(site, token, f"swept by {page}")
        session = yield from site.seen(used)
        expect(not session.is_new, f"a session in use was swept by {page}")
        yield from site.end(used.sid)


@check
def listed_in_pages(count: int = 60, page: int = 7) -> Flow[None]:
    """All sessions come in pages, in the order of their sids, none left out and none twice.

    Args:
        count: of sessions; a million is a `functools.partial` away. Some forty of them have one
            user, some forty another.
        page: size of the pages.
    """
    now = time.time()
    users = {"alice": 0, "bob": 0}
    for number in range(count):
        user = {0: "alice", 1: "bob"}.get(number % (count // 40 + 2))
        if user is not None:
            users[user] += 1
        yield Create(new_record(now, user=user, deadline=now + 86400.0))
    for user, wanted in ((None, count), *users.items()):
        expect_same((yield Count(user)), wanted, f"count of {user or 'all'}")
        found, after = 0, ""
        while True:
            records: list[Record] = yield List(user, LIVE, after, page)
            for record in records:
                expect(record.sid > after, f"{record.sid} comes after {after} in a list")
                expect(user in (None, record.user), f"{record.user} is listed under {user}")
                after = record.sid
            found += len(records)
            if len(records) < page:
                break
        expect_same(found, wanted, f"listed of {user or 'all'} by {page}")
    expect_same((yield Due(now, 60.0)), [], "what is over")
    expect_same((yield Count(status=MARK)), 0, "marks")
