"""The manager: what is committed when, what the answer says of it, the sessions as a mapping."""

from __future__ import annotations

import gc
import io
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import quixote
from quixote.errors import AccessError, PublishError, TraversalError
from quixote.http_request import HTTPRequest
from quixote.http_response import Stream

from sojourn import SessionManager
from sojourn.core.token import Token, new_secret, new_sid
from sojourn.errors import Conflict, StoreUnavailable, TooManySessions
from sojourn.stores.cookie import CookieStore
from sojourn.stores.directory import DirectoryStore
from sojourn.stores.memory import MemoryStore
from sojourn.testing import Fault, FlakyStore
from sojourn.web.quixote import DictSession, Session, ThreadSafePublisher
from sojourn.web.session3 import token_of_id

from ..kit import Answer
from .conftest import Site

MakeSite = Callable[..., Site]


class Visitor(Session):
    counter = 0

    def __init__(self, id: str | None) -> None:
        super().__init__(id)
        self.colour = "green"

    def has_info(self) -> bool:
        return self.counter > 0 or super().has_info()


def mine() -> Any:
    return quixote.get_session()


def manager() -> Any:
    return quixote.get_session_manager()


def count() -> str:
    mine().counter += 1
    return str(mine().counter)


def show() -> str:
    return str(mine().counter)


def expire() -> str:
    manager().expire_session()
    return repr(mine())


def quiet() -> str:
    return "quiet"


def failing(page: Callable[[], object], error: BaseException) -> Callable[[], str]:
    def failed() -> str:
        page()
        raise error

    return failed


def forgets(answer: Answer) -> bool:
    """Whether the browser is told to forget its cookie."""
    return any(line.startswith("id=; Max-Age=0") for line in answer.all("Set-Cookie"))


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    return make_site(Visitor)


# What is committed.


def test_a_page_commits(site: Site) -> None:
    """One write, one cookie; then a load and a write each."""
    answer = site.visit(count)

    assert site.verbs == ["create"]
    assert answer.one("Set-Cookie") == f"id={answer.token}; Path=/; HttpOnly; SameSite=Lax"
    assert answer.one("Cache-Control") == "no-store, private"
    assert site.visit(count).body == b"2"
    assert site.verbs == ["load", "replace"]


@pytest.mark.parametrize("error", [TraversalError, AccessError, PublishError])
def test_an_error_page_commits(site: Site, error: type[PublishError]) -> None:
    """A PublishError is a page; the cookie gets out though Quixote replaces the response."""

    def page() -> str:
        count()
        raise error

    answer = site.visit(page)

    assert answer.status == error.status_code
    assert answer.token
    assert site.visit(show).body == b"1"


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), PermissionError()])
def test_another_exception_undoes_all(site: Site, error: BaseException) -> None:
    """Nothing of the request is kept, and no cookie set: not even its login."""
    assert site.visit(failing(count, error)).status == 500
    assert site.store.count() == 0
    site.visit(count)

    def page() -> None:
        count()
        mine().set_user("ann")

    answer = site.visit(failing(page, error))

    assert answer.status == 500
    assert answer.token == ""
    assert site.visit(lambda: f"{show()} {mine().user}").body == b"1 None"


def test_commit_on_error(make_site: MakeSite) -> None:
    """Unless the operator wants it kept."""
    site = make_site(Visitor, commit_on_error=True)
    site.visit(count)

    assert site.visit(failing(count, RuntimeError())).status == 500
    assert site.visit(show).body == b"2"


def test_commit_on_error_that_fails(make_site: MakeSite, caplog: Any) -> None:
    """The page failed, and its commit too: one answer, and both in the log."""
    site = make_site(Visitor, commit_on_error=True)
    site.visit(count)

    def page() -> None:
        mine().thing = [object()]

    assert site.visit(failing(page, RuntimeError("first"))).status == 500
    assert "first" in site.log.getvalue()
    assert "session['thing']" in caplog.text
    assert site.visit(show).body == b"1"


def test_reading_writes_nothing(site: Site) -> None:
    """One load; and none at all where the page does not look at the session."""
    site.visit(count)
    site.verbs  # noqa: B018

    read = site.visit(show)
    assert site.verbs == ["load"]
    not_read = site.visit(quiet)
    assert site.verbs == []

    assert (read.one("Vary"), read.one("Cache-Control")) == (
        "Cookie",
        "private, max-age=0, no-cache",
    )
    # As Quixote makes it.
    assert (not_read.one("Vary"), not_read.one("Cache-Control")) == (None, "max-age=0, no-cache")


def test_a_use_is_noted_once_an_interval(site: Site) -> None:
    """A touch, and no more than one."""
    site.visit(count)
    site.clock.advance(181)
    site.verbs  # noqa: B018

    site.visit(show)
    site.visit(show)

    assert site.verbs == ["load", "touch", "load"]


def test_a_visitor_who_only_reads_gets_no_session(site: Site) -> None:
    """Nor one for whom only `__init__` wrote: neither a record nor a cookie."""
    for page in (quiet, show, lambda: mine().colour, lambda: str(mine().id)):
        answer = site.visit(page)
        assert answer.token == ""
    assert site.verbs == []


def test_what_is_not_worth_it(site: Site) -> None:
    """`has_info` rules: what it knows nothing of is not kept, in a stream neither."""

    def page() -> Stream:
        mine().colour = "red"
        session = mine()
        return Stream(iter([session.colour, str(setattr(session, "colour", "blue"))]))

    assert site.visit(page).token == ""
    assert site.verbs == []


def test_no_longer_worth_it(site: Site) -> None:
    """A session that a request makes worthless ends, and its cookie goes."""
    site.visit(count)

    answer = site.visit(lambda: setattr(mine(), "counter", 0) or "")

    assert forgets(answer)
    assert site.store.count() == 0


def test_what_another_framework_keeps(site: Site) -> None:
    """A session that has nothing of interest here is none of ours to end by reading it."""
    session = site.sessions.session()
    session["cart"] = ["tea"]
    token = site.sessions.commit(session).token

    site.visit(show, cookie=f"id={token}")

    assert site.store.count() == 1


@pytest.mark.parametrize(
    ("agent", "kept"),
    [
        ("Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", False),
        ("Mozilla/5.0 (compatible; bingbot/2.0)", False),
        ("Mozilla/5.0 (compatible; Yahoo! Slurp)", False),
        ("Baiduspider", False),
        ("SomeCrawler/1.0", False),
        ("Mozilla/5.0 (Linux; Android 9; CUBOT_X18_Plus) Firefox/120", True),
        ("Mozilla/5.0 (Linux; Android 9; CUBOT) Firefox/120", True),
        ("Mozilla/5.0 (X11; Linux x86_64; rv:120.0) Gecko/20100101 Firefox/120.0", True),
        ("", True),
    ],
)
def test_robots_get_no_session(site: Site, agent: str, kept: bool) -> None:
    """Each of their visits would make another one, as they send no cookie back."""
    answer = site.visit(count, HTTP_USER_AGENT=agent)

    assert answer.body == b"1"
    assert bool(answer.token) == kept
    assert site.store.count() == kept


def test_a_robot_that_logs_in(site: Site) -> None:
    """It has been given a name and a password, so it may have a session."""
    answer = site.visit(lambda: mine().set_user("bot") or "", HTTP_USER_AGENT="OurBot/1.0")

    assert answer.token


# Its end.


def test_expiring(site: Site) -> None:
    """No copy of the cookie works, the browser forgets it, and this request has no session."""
    site.visit(count)
    old = site.cookie
    answer = site.visit(expire)

    assert answer.body == b"None"
    assert forgets(answer)
    assert site.cookie == ""
    assert site.request(show, cookie=old).body == b"0"
    assert site.store.count() == 0


def test_expiring_without_a_session(site: Site) -> None:
    """Harmless, however often."""
    for _ in range(2):
        assert site.visit(expire).status == 200
    assert site.visit(lambda: expire() + expire()).status == 200
    assert site.verbs == []


@pytest.mark.parametrize("error", [TraversalError, AccessError])
def test_expiring_on_an_error_page(site: Site, error: type[PublishError]) -> None:
    """The session is over, and the cookie goes with that page."""
    site.visit(count)

    def page() -> str:
        expire()
        raise error

    answer = site.visit(page)

    assert answer.status == error.status_code
    assert forgets(answer)
    assert site.store.count() == 0


def test_expiring_and_failing(site: Site) -> None:
    """What failed did not happen: the visitor is still logged in."""
    site.visit(count)

    answer = site.visit(failing(expire, RuntimeError()))

    assert not forgets(answer)
    assert site.visit(show).body == b"1"


def test_another_session_after_the_end(site: Site) -> None:
    """A page may end one session and begin another; the browser gets the new cookie alone."""
    site.visit(count)
    old = site.visit(lambda: mine().id).body

    def page() -> str:
        expire()
        quixote.get_request().session = manager().get_session()
        return count() + mine().colour

    assert site.visit(page).body == b"1green"
    new = site.visit(lambda: mine().id).body

    assert old != new
    assert site.store.count() == 1


def test_a_session_put_in_its_place(site: Site) -> None:
    """A page may also replace it with one of `new_session`; the former stays as it was."""
    site.visit(count)

    def page() -> str:
        quixote.get_request().session = manager().new_session(None)
        return count()

    assert site.visit(page).body == b"1"
    assert site.visit(count).body == b"2"
    assert site.store.count() == 2


def test_an_ended_session_and_nothing_in_its_place(site: Site) -> None:
    """Also where the page put a new one there, to which nothing was written."""
    site.visit(count)

    def page() -> str:
        expire()
        quixote.get_request().session = manager().new_session(None)
        return ""

    assert forgets(site.visit(page))
    assert site.store.count() == 0


def test_logout_is_final(site: Site) -> None:
    """A slow request that was under way cannot bring the session back."""
    site.visit(lambda: mine().set_user("ann") or "")
    cookie = site.cookie

    def slow() -> str:
        count()
        here = quixote.get_request()
        site.request(expire, cookie=cookie)
        quixote.get_publisher()._set_request(here)
        return mine().user  # type: ignore[no-any-return]

    assert site.request(slow, cookie=cookie).body == b"ann"
    assert site.store.count() == 0
    assert site.request(lambda: repr(mine().user), cookie=cookie).body == b"None"


@pytest.mark.parametrize("store", ["memory", "directory"])
def test_logouts_at_once(make_site: MakeSite, store: str, tmp_path: Any) -> None:
    """Eight tabs log out together: each is told so, none fails."""
    site = make_site(
        Visitor, MemoryStore() if store == "memory" else DirectoryStore(tmp_path / "s")
    )
    together = threading.Barrier(8)
    statuses: list[int] = []

    def page() -> str:
        user = str(mine().user)
        together.wait(10)
        return user + expire()

    def log_out() -> None:
        statuses.append(site.request(page).status)

    for number in range(1, 11):
        site.visit(lambda: mine().set_user("ann") or "")
        threads = [threading.Thread(target=log_out) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert statuses == [200] * 8 * number
        assert site.store.count() == 0
        site.cookie = ""


def test_why_it_ended(site: Site) -> None:
    """The visitor can be told, as everywhere."""
    site.visit(count)
    site.clock.advance(3601)

    assert site.visit(lambda: mine().sojourn.ended_before.reason).body == b"idle"


# Bad input.


@pytest.mark.parametrize(
    "value",
    [
        "/dev/null",
        "../x",
        "./x",
        "/etc/passwd",
        "a\0b",
        "%00",
        '"',
        "",
        "=",
        "x" * 5000,
        "\xff",
        "*del*",
        "-" * 11,
        "A" * 11,
        "A" * 22 + "." + "A" * 43,
    ],
)
@pytest.mark.parametrize("name", ["id", "QX_session", "__Host-id"])
def test_bad_cookies(make_site: MakeSite, tmp_path: Any, name: str, value: str) -> None:
    """Whatever a cookie holds is at worst a new visitor, who can begin a session."""
    site = make_site(Visitor, DirectoryStore(tmp_path / "s"))

    answer = site.visit(count, cookie=f"{name}={value}")

    assert (answer.status, answer.body) == (200, b"1")
    assert site.visit(count).body == b"2"


def test_an_id_that_the_client_chose(site: Site) -> None:
    """It is not adopted."""
    token = Token(new_sid(site.sessions._env.entropy), new_secret(site.sessions._env.entropy))
    answer = site.visit(count, cookie=f"id={token}")

    assert answer.token
    assert not answer.token.startswith(token.sid)


@pytest.mark.parametrize("how", ["empty", "half", "garbage"])
def test_damaged_files(make_site: MakeSite, tmp_path: Any, how: str, caplog: Any) -> None:
    """The visitor has a new session, the log one line, and other visitors notice nothing."""
    site = make_site(Visitor, DirectoryStore(tmp_path / "s"))
    site.visit(count)
    damaged, site.cookie = site.cookie, ""
    files = {path for path in (tmp_path / "s").rglob("*") if path.is_file()}
    site.visit(count)
    sid = damaged.partition("=")[2][:22]
    for path in files:
        content = path.read_bytes()
        if len(content) > 100:
            path.write_bytes(
                {"empty": b"", "half": content[: len(content) // 2], "garbage": b"\0" * 500}[how]
            )
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert site.request(show, cookie=damaged).body == b"0"
            assert site.request(count, cookie=damaged).body == b"1"
    assert site.visit(show).body == b"1"
    assert len([record for record in caplog.records if sid in record.getMessage()]) == 1


def test_foreign_files_stay(make_site: MakeSite, tmp_path: Any) -> None:
    """What lies in the directory and is no session is neither read nor removed."""
    site = make_site(Visitor, DirectoryStore(tmp_path / "s"))
    site.visit(count)
    (tmp_path / "s" / "readme.txt").write_text("mine")
    (tmp_path / "s" / "folder").mkdir()

    assert len(list(site.manager)) == 1
    site.clock.advance(90000)
    site.sessions.sweep()
    assert len(list(site.manager)) == 0
    assert (tmp_path / "s" / "readme.txt").read_text() == "mine"


def test_a_request_that_makes_no_sense(site: Site) -> None:
    """What Quixote refuses before it begins has no session to be committed."""
    answer = site.request(count, QUERY_STRING="a=%ff")

    assert answer.status == 400
    assert site.verbs == []


def test_no_secret_in_quixotes_log(make_site: MakeSite) -> None:
    """Quixote writes the cookies of a failed request to its log; ours without its secret."""
    site = make_site(Visitor, config={"display_exceptions": "plain"})
    site.visit(count)
    secret = site.cookie.partition(".")[2]
    old = "AbCdEfGhIjK"

    answer = site.visit(failing(count, RuntimeError()), cookie=f'QX_session="{old}"; {site.cookie}')

    for text in (site.log.getvalue(), answer.body.decode()):
        assert "RuntimeError" in text
        assert secret not in text
        assert old not in text
        assert "HTTP_COOKIE" in text
        assert site.cookie[:25] in text


def test_no_sealed_cookie_in_quixotes_log(make_site: MakeSite) -> None:
    """Of a cookie that holds the session itself no part may be shown."""
    site = make_site(Visitor, CookieStore([secrets.token_hex(32)]))
    site.manager.sessions = site.sessions = SessionManager(site.store.store, clock=site.clock)
    site.visit(count)
    name, _, sealed = site.cookie.partition("=")
    site.visit(failing(count, RuntimeError()))

    assert name == "id"
    assert len(sealed) > 60
    assert "RuntimeError" in site.log.getvalue()
    assert sealed[10:30] not in site.log.getvalue()


# What the application does at a bad moment.


def test_commit_on_error_where_has_info_fails(make_site: MakeSite, caplog: Any) -> None:
    """There is an answer, and the log says what is lost."""

    class Odd(Session):
        def has_info(self) -> bool:
            raise ValueError("odd")

    site = make_site(Odd, commit_on_error=True)

    def page() -> str:
        mine().colour = "red"
        raise RuntimeError

    assert site.visit(page).status == 500
    assert "odd" in caplog.text


@pytest.mark.parametrize("error", [RuntimeError(), Conflict("later")])
def test_what_was_committed_before_the_failure(site: Site, error: Exception) -> None:
    """The browser is told of a login that is done, or the visitor would lose the session."""
    site.manager.session_class = Visitor
    site.visit(count)

    def page() -> str:
        mine().set_user("alice")
        manager().maintain_session(mine())
        mine().counter = 99
        raise error

    assert site.visit(page).status in (500, 409)
    site.clock.advance(11)
    assert site.visit(lambda: f"{mine().user} {mine().counter}").body == b"alice 1"


def test_a_session_after_the_end_that_is_not_worth_it(site: Site) -> None:
    """What `get_session` of the manager gives then is kept by the same rule as any other."""

    class Shopper(Session):
        def __init__(self, id: str | None) -> None:
            super().__init__(id)
            self.cart = []

        def has_info(self) -> bool:
            return bool(self.cart)

    def page(*items: str) -> str:
        manager().expire_session()
        manager().get_session().cart.extend(items)
        return "ended"

    site.manager.session_class = Shopper
    site.visit(lambda: str(mine().cart.append("tea")))
    assert len(site.manager) == 1
    site.visit(page)
    assert (len(site.manager), site.cookie) == (0, "")
    site.visit(lambda: page("milk"))
    assert len(site.manager) == 1


def test_no_longer_worth_it_by_a_change_in_place(site: Site) -> None:
    """An emptied basket is a change too."""

    class Shopper(Session):
        def has_info(self) -> bool:
            return bool(getattr(self, "cart", None))

    def fill() -> str:
        mine().cart = ["tea"]
        return "filled"

    site.manager.session_class = Shopper
    site.visit(fill)
    site.visit(lambda: str(mine().cart))
    assert len(site.manager) == 1
    site.visit(lambda: str(mine().cart.clear()))
    assert (len(site.manager), site.cookie) == (0, "")


def test_an_access_log_and_an_init_that_fails(site: Site) -> None:
    """The log asks for the user of a page that did not look; the page is sent all the same."""

    class Odd(Session):
        def __init__(self, id: str | None) -> None:
            raise ValueError("odd")

    site.manager.session_class = Odd
    site.publisher.logger.access_log = io.StringIO()
    assert site.visit(quiet).status == 200


# The store is not there.


def down(site: Site, *verbs: str) -> None:
    """Let calls of these verbs never reach the store from here on."""
    site.store.store = FlakyStore(
        site.store.store, lambda verb, _: Fault.UNAVAILABLE if verb in verbs else None
    )


def unavailable(answer: Answer) -> None:
    """It is the clear answer that every framework gives."""
    assert answer.status == 503
    assert answer.one("Retry-After") == "5"
    assert answer.one("Cache-Control") == "no-store, private"
    assert answer.all("Set-Cookie") == []
    assert b"try again" in answer.body
    assert answer.one("Content-Length") == str(len(answer.body))


def test_store_down(site: Site) -> None:
    """A page without the session works; one with it answers 503 and leaves the cookie."""
    site.visit(count)
    down(site, "load")
    site.publisher.logger.access_log = site.log

    quiet_answer = site.visit(quiet)
    assert (quiet_answer.body, quiet_answer.all("Vary")) == (b"quiet", [])
    unavailable(site.visit(show))
    unavailable(site.visit(lambda: quixote.get_request().get_environ("REMOTE_USER") or ""))
    unavailable(site.visit(expire))
    assert site.request(show, cookie="").body == b"0"


def test_store_down_is_asked_once(site: Site) -> None:
    """The one page that needs it waits once, however many look: has_info, the access log."""
    site.visit(count)

    class Hung(MemoryStore):
        def load(self, sid: str) -> Any:
            raise StoreUnavailable("no answer in 2 s")

    site.store.store = Hung()
    site.publisher.logger.access_log = site.log
    site.verbs  # noqa: B018

    unavailable(site.visit(show))
    assert site.verbs == ["load"]


@pytest.mark.parametrize("verb", ["create", "replace", "delete"])
@pytest.mark.parametrize("error", [None, TraversalError])
def test_store_down_at_the_commit(site: Site, verb: str, error: Any, caplog: Any) -> None:
    """The client is never told that something was saved that was not; on error pages too."""
    if verb != "create":
        site.visit(count)
    down(site, verb)

    def page() -> str:
        if verb == "delete":
            expire()
        else:
            count()
        if error:
            raise error
        return "saved"

    unavailable(site.visit(page))
    assert "'/'" in caplog.text


def test_store_down_and_caught(site: Site) -> None:
    """A page that catches it keeps its own answer, which caches keep off."""
    site.visit(count)
    down(site, "load")

    def page(status: int = 200) -> str:
        quixote.get_response().set_status(status)
        try:
            return show()
        except StoreUnavailable:
            return "a page without"

    answer = site.visit(page)

    assert (answer.status, answer.body) == (200, b"a page without")
    assert answer.one("Vary") == "Cookie"
    unavailable(site.visit(lambda: page(500)))
    assert site.visit(lambda: page(404)).body == b"a page without"


def test_store_down_and_another_error(site: Site) -> None:
    """A `StoreUnavailable` that is not of the session is the application's own affair."""
    assert site.visit(failing(quiet, StoreUnavailable("another"))).status == 500


def test_going_on_without(make_site: MakeSite) -> None:
    """Where the operator wants that, pages see an empty session that is not kept."""
    site = make_site(Visitor, on_store_error="continue")
    site.visit(count)
    down(site, "load", "create")

    answer = site.visit(count)

    assert (answer.status, answer.body, answer.token) == (200, b"1", "")


@pytest.mark.parametrize(
    ("error", "status"), [(Conflict("twice"), 409), (TooManySessions("four"), 403)]
)
def test_errors_with_an_answer(site: Site, error: Exception, status: int) -> None:
    """They are answered as in every framework, whether the page or the commit raises them."""
    assert site.visit(failing(quiet, error)).status == status


def test_conflict_at_the_commit(make_site: MakeSite) -> None:
    """`on_conflict="raise"`: the later of two gets a 409, and may try again."""
    site = make_site(Visitor, on_conflict="raise")
    site.visit(count)

    def page() -> str:
        here = quixote.get_request()
        answer = count()
        site.request(lambda: setattr(mine(), "counter", 10) or "")
        quixote.get_publisher()._set_request(here)
        return answer

    assert site.visit(page).status == 409
    assert site.visit(show).body == b"10"


# What the answer says.


def test_https(site: Site) -> None:
    """Known by the scheme of WSGI, and by HTTPS as CGI has it."""
    for more in ({"https": True}, {"HTTPS": "on"}):
        answer = site.request(count, cookie="", **more)
        assert answer.one("Set-Cookie") == (
            f"__Host-id={answer.token}; Path=/; HttpOnly; SameSite=Lax; Secure"
        )
        cookie = f"__Host-id={answer.token}"
        assert site.request(show, cookie=cookie, **more).body == b"1"
        assert site.request(show, cookie=cookie).body == b"0"


def test_the_applications_own_headers(site: Site) -> None:
    """They stay, its cookies too; what would let a shared cache keep the page goes."""

    def page() -> str:
        response = quixote.get_response()
        response.set_cookie("lang", "en")
        response.set_header("Cache-Control", "public, max-age=60")
        response.set_header("Vary", "Accept")
        return count()

    answer = site.visit(page)

    assert answer.all("Set-Cookie")[0] == 'lang="en"'
    assert answer.all("Set-Cookie")[1].startswith("id=")
    assert answer.all("Vary") == ["Accept", "Cookie"]
    site.visit(count)
    assert site.visit(page).one("Cache-Control") == "private, max-age=60"


@pytest.mark.parametrize(
    ("config", "settings", "fault"),
    [
        ({"session_cookie_secure": True}, {}, "cookie_secure=True"),
        ({"session_cookie_domain": "x.example"}, {}, "cookie_domain='x.example'"),
        ({"session_cookie_path": "/app/"}, {}, "cookie_path='/app/'"),
        ({"session_cookie_secure": True}, {"cookie_secure": True}, None),
        ({"session_cookie_domain": "x.example"}, {"cookie_domain": "x.example"}, None),
        ({"session_cookie_path": "/"}, {}, None),
        ({"session_cookie_httponly": True, "session_cookie_name": "other"}, {}, None),
    ],
)
def test_quixotes_settings_of_the_cookie(
    make_site: MakeSite, config: Any, settings: Any, fault: str | None
) -> None:
    """What Quixote was told and ours was not is no silent matter: no page works."""
    site = make_site(Visitor, config=config, **settings)

    answer = site.visit(quiet)

    assert answer.status == (500 if fault else 200)
    assert not fault or fault in site.log.getvalue()


def test_a_store_that_does_not_fit_the_server(site: Site) -> None:
    """Where processes would not see each other's sessions, no page works; the log says why."""
    for more in ({"wsgi.multiprocess": True}, {"wsgi.run_once": True}, {"SCGI": "1"}):
        assert site.request(quiet, **more).status == 500
    assert site.log.getvalue().count("is for one process, and this server has several") == 3

    assert site.request(quiet).status == 200


def test_streams(site: Site) -> None:
    """What a streamed body changes is committed when it has ended; the cookie is long gone."""
    site.visit(count)
    session: list[Any] = []

    def page() -> Stream:
        session.append(mine())

        def chunks() -> Iterator[str]:
            yield "one"
            session[0].add("counter")
            yield "two"

        return Stream(chunks())

    answer = site.visit(page)

    assert answer.body == b"onetwo"
    # A WSGI server sends it as it likes.
    assert answer.all("Transfer-Encoding") + answer.all("Connection") == []
    assert site.visit(show).body == b"2"
    assert site.verbs == ["create", "load", "replace", "load"]


def test_streams_that_come_too_late(site: Site, caplog: Any) -> None:
    """A body that begins a session cannot send its cookie, and the log says so."""

    def page() -> Stream:
        session = mine()

        def chunks() -> Iterator[str]:
            yield "one"
            session.add("counter")
            yield "two"

        return Stream(chunks())

    assert site.visit(page).body == b"onetwo"
    assert "after the head of the answer had left" in caplog.text
    assert site.store.count() == 0


def test_streams_that_are_not_read_to_the_end(site: Site) -> None:
    """The client goes in the middle: what was done until then was done."""
    site.visit(count)

    def page() -> Stream:
        session = mine()

        def chunks() -> Iterator[str]:
            yield "one"
            session.add("counter")
            yield "two"
            session.add("counter")
            yield "three"

        return Stream(chunks())

    assert site.request(page, read=1).body == b"one"
    assert site.visit(show).body == b"2"


def test_streams_that_fail(site: Site) -> None:
    """What a body changed that broke off is not kept."""
    site.visit(count)

    def page() -> Stream:
        session = mine()

        def chunks() -> Iterator[str]:
            yield "one"
            session.add("counter")
            raise RuntimeError("no more")

        return Stream(chunks())

    with pytest.raises(RuntimeError, match="no more"):
        site.visit(page)
    assert site.visit(show).body == b"1"


# One request at a time.


def test_exclusive(make_site: MakeSite) -> None:
    """A plain `counter += 1` loses nothing where requests wait for each other."""
    site = make_site(Visitor, exclusive=True)
    site.visit(count)
    site.root.page = count
    errors: list[int] = []

    def many() -> None:
        for _ in range(25):
            status = site.request(count).status
            if status != 200:
                errors.append(status)

    threads = [threading.Thread(target=many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert errors == []
    assert site.visit(show).body == b"101"


def test_exclusive_pages_that_do_not_look(make_site: MakeSite) -> None:
    """They wait for nobody, and cost nothing."""
    site = make_site(Visitor, exclusive=True)
    assert site.visit(count).token
    site.verbs  # noqa: B018

    site.visit(quiet)

    assert site.verbs == []


@pytest.mark.parametrize("error", [RuntimeError(), TraversalError, None])
def test_exclusive_gives_its_lock_back(make_site: MakeSite, error: Any) -> None:
    """Whatever comes of the page; what failed is undone."""
    site = make_site(Visitor, exclusive=True)
    site.visit(count)

    def page() -> str:
        count()
        if error:
            raise error
        return ""

    site.visit(page)
    kept = isinstance(error, Exception)

    # It would wait for ten seconds otherwise, and then answer 409.
    answer = site.visit(count)
    assert (answer.status, answer.body) == (200, b"2" if kept else b"3")


def test_exclusive_error_pages_that_fail(make_site: MakeSite) -> None:
    """The lock is given back where an error page cannot be committed."""

    class Broken(Visitor):
        def has_info(self) -> bool:
            if self.counter == 2:
                raise ZeroDivisionError
            return super().has_info()

    site = make_site(Broken, exclusive=True)
    site.visit(count)

    def page() -> str:
        count()
        raise TraversalError

    assert site.visit(page).status == 500
    answer = site.visit(lambda: setattr(mine(), "counter", 5) or show())
    assert (answer.status, answer.body) == (200, b"5")


@pytest.mark.parametrize("exclusive", [False, True])
def test_publishers_that_try_again(make_site: MakeSite, exclusive: bool) -> None:
    """What the first try did is forgotten, and its lock given back."""

    class Again(ThreadSafePublisher):
        def try_publish(self, request: Any) -> Any:
            try:
                return super().try_publish(request)
            except ZeroDivisionError:
                return super().try_publish(request)

    tries: list[None] = []

    def page() -> str:
        # The traceback of the first try holds it while the second one is made.
        session = mine()
        session.counter += 1
        tries.append(None)
        if len(tries) == 1:
            raise ZeroDivisionError
        return show()

    site = make_site(Visitor, exclusive=exclusive, publisher=Again)
    site.visit(count)

    assert site.visit(page).body == b"2"


def test_a_request_leads_not_to_itself(site: Site) -> None:
    """Or each would be left to the garbage collector."""

    def refused() -> None:
        count()
        raise AccessError

    site.visit(count)

    def pages() -> None:
        site.visit(count)
        site.visit(lambda: quixote.get_request().get_environ("REMOTE_USER") or "")
        site.visit(refused)

    def left() -> int:
        return sum(isinstance(one, HTTPRequest | Session) for one in gc.get_objects())

    pages()
    gc.collect()
    gc.disable()
    try:
        before = left()
        pages()
        after = left()
    finally:
        gc.enable()

    assert after == before


def test_exclusive_with_an_access_log(make_site: MakeSite) -> None:
    """Quixote's log asks for the user when all is over; that takes no lock."""
    site = make_site(Visitor, exclusive=True)
    site.visit(lambda: mine().set_user("ann") or count())
    site.publisher.logger.access_log = site.log

    site.visit(quiet)

    assert " ann " in site.log.getvalue()
    assert site.visit(count).body == b"2"


def test_exclusive_logout_while_waiting(make_site: MakeSite) -> None:
    """Who waited for a request that logs out goes on as a new visitor, and learns why."""
    site = make_site(Visitor, exclusive=True)
    site.visit(lambda: mine().set_user("ann") or "")
    inside, go = threading.Event(), threading.Event()
    answers: list[Answer] = []
    site.verbs  # noqa: B018

    def slow_logout() -> str:
        expire()
        inside.set()
        go.wait(10)
        return "out"

    def who() -> str:
        return repr((mine().user, mine().sojourn.ended_before.reason))

    first = threading.Thread(target=lambda: answers.append(site.request(slow_logout)))
    first.start()
    assert inside.wait(10)
    second = threading.Thread(target=lambda: answers.append(site.request(who)))
    second.start()
    # It looks at the session, and then again and again at the lock.
    while site.store.verbs.count("load") < 8:
        time.sleep(0.002)
    go.set()
    first.join(20)
    second.join(20)

    assert [answer.body for answer in answers] == [b"out", b"(None, 'user')"]


def test_exclusive_end_with_nothing_left(make_site: MakeSite) -> None:
    """What ends under the lock ends, and nothing worthless takes its place."""
    site = make_site(Visitor, exclusive=True)
    site.visit(lambda: mine().set_user("ann") or "")

    answer = site.visit(lambda: mine().set_user(None) or "")

    assert forgets(answer)
    assert list(site.manager) == []


def test_exclusive_store_down(make_site: MakeSite) -> None:
    """Where the lock cannot be asked for, the page that looks at the session answers 503."""
    site = make_site(Visitor, exclusive=True)
    site.visit(count)
    down(site, "create", "replace")

    unavailable(site.visit(show))
    assert site.visit(quiet).body == b"quiet"


# What applications call.


def test_the_sessions_as_a_mapping(site: Site) -> None:
    """By id; iteration gives the sessions themselves, as with Quixote's own manager."""
    cookies = []
    for _ in range(3):
        site.cookie = ""
        site.visit(count)
        cookies.append(site.cookie)
    ids = sorted(cookie[3:25] for cookie in cookies)

    assert sorted(session.id for session in site.manager) == ids
    assert len(site.manager) == 3
    assert ids[0] in site.manager
    assert site.manager.has_session(ids[1]) is True
    assert site.manager[ids[2]].counter == 1
    assert site.manager.get(ids[0]).user is None
    del site.manager[ids[0]]
    assert len(site.manager) == 2
    for absent in (ids[0], "x", "", "/dev/null", "A" * 22):
        assert absent not in site.manager
        assert site.manager.get(absent) is None
        assert site.manager.get(absent, 5) == 5
        assert not site.manager.has_session(absent)
        with pytest.raises(KeyError):
            site.manager[absent]
        with pytest.raises(KeyError):
            del site.manager[absent]
    assert None not in site.manager
    assert site.manager.get(None) is None
    assert bool(site.manager)
    site.clock.advance(3601)
    assert list(site.manager) == []


def test_many_sessions(site: Site) -> None:
    """Iteration goes on over pages of the store."""
    for _ in range(250):
        site.request(count, cookie="")

    assert len({session.id for session in site.manager}) == 250


def test_looking_at_others_changes_nothing(site: Site) -> None:
    """What is written to another session is kept when it is given to `maintain_session`."""
    site.visit(count)
    sid = site.cookie[3:25]
    other = site.manager[sid]
    other.counter = 7
    assert site.visit(show).body == b"1"

    assert site.manager.maintain_session(other) is True
    assert site.visit(show).body == b"7"


def test_the_requests_own_session_among_all(site: Site) -> None:
    """It is the same object, so that a list can mark it."""
    site.visit(count)

    answer = site.visit(lambda: str(manager().get(mine().id) is mine()))

    assert answer.body == b"True"
    assert site.visit(lambda: str(manager().get_session() is mine())).body == b"True"


def test_an_id_before_the_end_of_the_page(site: Site) -> None:
    """`maintain_session` commits at once; the cookie comes with the answer, and once."""

    def page() -> str:
        assert mine().id is None
        assert manager().maintain_session(mine()) is False
        count()
        assert manager().maintain_session(mine()) is True
        return str(mine().id)

    answer = site.visit(page)

    assert answer.body.decode() == answer.token[:22]
    assert len(answer.all("Set-Cookie")) == 1
    assert site.visit(show).body == b"1"
    assert site.verbs == ["create", "load"]


def test_has_session_cookie(site: Site) -> None:
    """Whether one came, and whether it is good."""

    def ask() -> str:
        return repr((manager().has_session_cookie(), manager().has_session_cookie(True)))

    assert site.visit(ask).body == b"(False, False)"
    assert site.visit(ask, cookie="id=" + "A" * 22 + "." + "A" * 43).body == b"(True, False)"
    site.visit(count)
    assert site.visit(ask).body == b"(True, True)"


# Cookies of Session3.


def old_session(site: Site, old: str, **values: Any) -> None:
    token = token_of_id(old)
    assert token is not None
    assert site.sessions.adopt(token, values, user="ann")


@pytest.mark.parametrize("spelling", ['QX_session="AbCdEfGhI-_"', "QX_session=AbCdEfGhI-_"])
def test_a_cookie_of_session3(site: Site, spelling: str) -> None:
    """Once the session was taken over its old id opens it, and is at once exchanged for ours."""
    old_session(site, "AbCdEfGhI-_", counter=5)

    first = site.visit(
        lambda: f"{mine().user} {show()}", cookie=spelling, SCRIPT_NAME="/shop", path="/"
    )

    assert first.body == b"ann 5"
    assert first.token
    # Where Session3 has set it.
    gone = next(line for line in first.all("Set-Cookie") if line.startswith("QX_session="))
    assert "max-age=0" in gone
    assert "path=/shop/" in gone
    assert site.visit(show).body == b"5"
    # For requests that were sent together with the first; then it is dead.
    assert site.request(show, cookie=spelling).body == b"5"
    site.clock.advance(11)
    assert site.request(show, cookie=spelling).body == b"0"
    assert site.visit(show).body == b"5"


def test_a_cookie_of_session3_beside_ours(site: Site) -> None:
    """Ours counts."""
    old_session(site, "AbCdEfGhI-_", counter=5)
    site.visit(count)

    assert site.request(show, cookie=f"QX_session=AbCdEfGhI-_; {site.cookie}").body == b"1"


def test_a_cookie_of_session3_of_another_name(make_site: MakeSite) -> None:
    """As Quixote was told to call it."""
    site = make_site(Visitor, config={"session_cookie_name": "OLD"})
    old_session(site, "AbCdEfGhI-_", counter=5)

    assert site.visit(show, cookie="OLD=AbCdEfGhI-_").body == b"5"


# Quixote's own demo.


def test_quixotes_altdemo(make_site: MakeSite) -> None:
    """Quixote's demo of sessions, with our manager: login, a list of all sessions, logout."""
    from quixote.demo import altdemo

    class DemoSession(Session):
        def __init__(self, id: str | None) -> None:
            Session.__init__(self, id)
            self.num_requests = 0

        def start_request(self) -> None:
            Session.start_request(self)
            self.num_requests += 1

        def has_info(self) -> bool:
            return self.num_requests > 0 or super().has_info()

        is_dirty = has_info

    site = make_site(DemoSession)
    root = altdemo.RootDirectory()

    site.visit(root._q_index)
    site.post(root.login, "name=ann")
    listed = site.visit(root._q_index).body

    assert b"Hello, ann." in listed
    assert site.cookie[3:25].encode() in listed
    assert b"Goodbye, ann." in site.visit(root.logout).body
    assert site.sessions.of_user("ann") == []


def test_no_request_is_left(site: Site) -> None:
    """After a request its thread has none."""
    site.visit(count)

    assert site.publisher.get_request() is None


@pytest.mark.parametrize("kind", [Session, DictSession])
def test_a_session_without_a_publisher(kind: type[Session]) -> None:
    """There is nothing that it could stand on."""
    quixote.cleanup()

    with pytest.raises((AttributeError, RuntimeError)):
        kind(None)
