"""Each scenario fails on a site that breaks what it is about."""

from __future__ import annotations

import importlib.util
import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sojourn import Session, SessionManager
from sojourn.core import opening
from sojourn.testing import scenarios
from sojourn.testing.scenarios import (
    PARALLEL,
    SCENARIOS,
    ScenarioFailed,
    check_restart,
    run_scenario,
    run_scenarios,
)
from sojourn.web import wsgi

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "wsgi" / "app.py"


class Broken:
    """The example application, for a fault to be put in: into its parts, or around it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        patch.setenv("SESSIONS", "memory://")
        spec = importlib.util.spec_from_file_location("example_wsgi_app", EXAMPLE)
        assert spec is not None
        assert spec.loader is not None
        self.example: ModuleType = importlib.util.module_from_spec(spec)
        patch.setitem(__import__("sys").modules, spec.name, self.example)
        spec.loader.exec_module(self.example)
        self.patch = patch
        self.settings: dict[str, Any] = {}
        self.sessions: SessionManager | None = None
        self.before: Callable[[dict[str, Any]], None] = lambda environ: None
        self.instead: Callable[[dict[str, Any]], list[tuple[str, str]] | None] = lambda e: None
        self.header: Callable[[dict[str, Any], str, str], str | None] = lambda e, name, value: value
        self.body: Callable[[dict[str, Any], bytes], bytes] = lambda environ, body: body

    def app(self) -> Any:
        sessions = self.sessions or SessionManager("memory://", **self.settings)
        app = self.example.make_app(sessions)

        def around(environ: dict[str, Any], start_response: Any) -> Any:
            self.before(environ)
            headers = self.instead(environ)
            if headers is not None:
                start_response("200 OK", headers)
                return [b'{"ok": true}']

            def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
                kept = [(n, self.header(environ, n, v)) for n, v in headers]
                found = [(n, v) for n, v in kept if v is not None and n != "Content-Length"]
                return start_response(status, found, exc_info)

            result = app(environ, start)
            chunks = [self.body(environ, chunk) for chunk in result]
            if hasattr(result, "close"):
                result.close()
            return chunks

        return around


Fault = Callable[[Broken], None]
FAULTS: dict[str, Fault] = {}


def breaks(name: str) -> Callable[[Fault], Fault]:
    def register(fault: Fault) -> Fault:
        FAULTS[name] = fault
        return fault

    return register


def is_on(environ: dict[str, Any], method: str, path: str) -> bool:
    return bool((environ["REQUEST_METHOD"], environ["PATH_INFO"]) == (method, path))


@breaks("no_session_without_a_write")
def writes_on_every_read(broken: Broken) -> None:
    def get(session: Session, query: dict[str, str]) -> Any:
        session.add("reads")
        return {"value": session.get(query["key"])}

    broken.example.PAGES["GET", "/api/get"] = get


@breaks("counter_over_two_pages")
def forgets_the_cookie(broken: Broken) -> None:
    broken.before = lambda environ: environ.pop("HTTP_COOKIE", None)


@breaks("each_visitor_has_their_own")
def gives_all_one_session(broken: Broken) -> None:
    kept: list[str] = []

    def before(environ: dict[str, Any]) -> None:
        environ["HTTP_COOKIE"] = "".join(kept[:1])

    def header(environ: dict[str, Any], name: str, value: str) -> str:
        if name == "Set-Cookie":
            kept.append(value.partition(";")[0])
        return value

    broken.before, broken.header = before, header


@breaks("text_comes_back_equal")
def mangles_text(broken: Broken) -> None:
    def before(environ: dict[str, Any]) -> None:
        environ["QUERY_STRING"] = environ["QUERY_STRING"].replace("%C3%AF", "i")

    broken.before = before


@breaks("typed_state_is_kept")
def makes_a_new_cart_each_time(broken: Broken) -> None:
    broken.example.PAGES["GET", "/api/cart"] = lambda session, query: {"items": []}


@breaks("flash_is_shown_once")
def shows_messages_for_ever(broken: Broken) -> None:
    broken.patch.setattr(Session, "pop_flash", Session.peek_flash)


@breaks("malformed_cookies_are_new_visitors")
def takes_a_quoted_cookie(broken: Broken) -> None:
    def before(environ: dict[str, Any]) -> None:
        environ["HTTP_COOKIE"] = environ.get("HTTP_COOKIE", "").replace('"', "")

    broken.before = before


@breaks("client_never_chooses_an_id")
def adopts_the_id_of_the_client(broken: Broken) -> None:
    def header(environ: dict[str, Any], name: str, value: str) -> str:
        given = re.search(r"id=([\w-]{22})\.", environ.get("HTTP_COOKIE", ""))
        if name == "Set-Cookie" and given:
            return re.sub(r"id=[\w-]{22}", given[0][:-1], value)
        return value

    broken.header = header


@breaks("wrong_secret_opens_nothing")
def does_not_compare_secrets(broken: Broken) -> None:
    broken.patch.setattr(opening, "same_hash", lambda one, other: True)


@breaks("two_cookies_count_at_most_once")
def takes_the_first_cookie(broken: Broken) -> None:
    def before(environ: dict[str, Any]) -> None:
        environ["HTTP_COOKIE"] = environ.get("HTTP_COOKIE", "").partition(";")[0]

    broken.before = before


@breaks("cookie_has_all_attributes")
def lets_scripts_read_the_cookie(broken: Broken) -> None:
    broken.header = lambda environ, name, value: value.replace("; HttpOnly", "")


@breaks("set_cookie_only_for_a_new_token")
def sends_the_cookie_each_time(broken: Broken) -> None:
    def header(environ: dict[str, Any], name: str, value: str) -> str:
        return value

    def instead(environ: dict[str, Any]) -> list[tuple[str, str]] | None:
        if is_on(environ, "POST", "/api/flash"):
            return [("Set-Cookie", environ["HTTP_COOKIE"] + "; Path=/")]
        return None

    broken.header, broken.instead = header, instead


@breaks("answers_with_a_session_are_private")
def lets_a_cache_share_answers(broken: Broken) -> None:
    broken.header = lambda environ, name, value: None if name == "Vary" else value


@breaks("remembered_cookie_outlives_the_browser")
def forgets_the_age(broken: Broken) -> None:
    broken.header = lambda environ, name, value: re.sub(r"; Max-Age=\d\d+", "", value)


@breaks("logout_clears_the_cookie")
def leaves_the_cookie_at_logout(broken: Broken) -> None:
    broken.header = lambda environ, name, value: None if "Max-Age=0" in value else value


@breaks("login_renews_the_secret")
def keeps_the_cookie_at_login(broken: Broken) -> None:
    def header(environ: dict[str, Any], name: str, value: str) -> str | None:
        login = is_on(environ, "POST", "/api/login")
        return None if name == "Set-Cookie" and login else value

    broken.header = header


@breaks("renewal_keeps_parallel_requests")
def gives_no_grace(broken: Broken) -> None:
    broken.settings["grace"] = 0


@breaks("logout_ends_copies_too")
def only_takes_the_cookie_away(broken: Broken) -> None:
    def instead(environ: dict[str, Any]) -> list[tuple[str, str]] | None:
        if is_on(environ, "POST", "/api/logout"):
            return [("Set-Cookie", "id=; Max-Age=0; Path=/")]
        return None

    broken.instead = instead


@breaks("another_user_starts_anew")
def lets_the_next_user_go_on(broken: Broken) -> None:
    broken.patch.setattr(Session, "end", lambda session, reason="user": None)


@breaks("end_all_others")
def ends_no_others(broken: Broken) -> None:
    broken.sessions = SessionManager("memory://")
    broken.patch.setattr(broken.sessions, "end_all", lambda user, keep: ["one", "two"])


@breaks("form_token_is_checked")
def takes_any_form(broken: Broken) -> None:
    broken.patch.setattr(Session, "check_csrf", lambda session, token: None)


@breaks("parallel_adds_are_all_kept")
def reads_and_writes_back(broken: Broken) -> None:
    all_have_read = threading.Barrier(PARALLEL)

    def add(session: Session, query: dict[str, str]) -> Any:
        value = session.get("n", 0) + 1
        all_have_read.wait(20)
        session["n"] = value
        return {"value": value}

    broken.example.PAGES["POST", "/api/add"] = add


@breaks("parallel_writes_of_other_keys_are_all_kept")
def keeps_all_in_one_value(broken: Broken) -> None:
    all_have_read = threading.Barrier(PARALLEL // 2)

    def set_(session: Session, query: dict[str, str]) -> Any:
        values = dict(session.get("all", {}))
        if query["key"] != "first":
            all_have_read.wait(20)
        session["all"] = values | {query["key"]: query["value"]}
        return {"value": query["value"]}

    def get(session: Session, query: dict[str, str]) -> Any:
        return {"value": session.get("all", {}).get(query["key"])}

    broken.example.PAGES["POST", "/api/set"] = set_
    broken.example.PAGES["GET", "/api/get"] = get


@breaks("late_write_of_a_stream_is_kept")
def commits_only_before_the_head(broken: Broken) -> None:
    broken.patch.setattr(scenarios, "_LATE", 0.2)
    broken.patch.setattr(wsgi.Request, "finish", lambda request: None)


@breaks("failed_request_keeps_nothing")
def keeps_what_a_failed_request_did(broken: Broken) -> None:
    broken.settings["commit_on_error"] = True


def test_every_scenario_has_a_fault() -> None:
    """No scenario stands here without a site that it fails on."""
    assert FAULTS.keys() == SCENARIOS.keys()


def test_without_a_fault(serve: Callable[[Any], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the faults are put into passes without them."""
    run_scenarios(serve(Broken(monkeypatch).app()))


@pytest.mark.parametrize("name", SCENARIOS)
def test_fault_is_caught(
    serve: Callable[[Any], str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A scenario fails where a site breaks its promise, and says which promise."""
    broken = Broken(monkeypatch)
    FAULTS[name](broken)
    url = serve(broken.app())

    with pytest.raises(ScenarioFailed, match=f"^- {name} "):
        run_scenario(SCENARIOS[name], url)


def test_all_failures_are_told(
    serve: Callable[[Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run tells of every scenario that fails, not only of the first."""
    broken = Broken(monkeypatch)
    forgets_the_cookie(broken)
    monkeypatch.setattr(scenarios, "_LATE", 0.2)
    url = serve(broken.app())

    with pytest.raises(ScenarioFailed) as caught:
        run_scenarios(url)
    for name in ("counter_over_two_pages", "flash_is_shown_once", "parallel_adds_are_all_kept"):
        assert f"- {name} " in str(caught.value)


def test_a_restart_that_loses_everything_is_caught(
    serve: Callable[[Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restart with a store in memory loses all, and the check says so."""
    broken = Broken(monkeypatch)
    first = serve(broken.app())

    with pytest.raises(ScenarioFailed, match="the counter: 1 came, 2 is right"):
        check_restart(first, lambda: serve(broken.app()))


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://127.0.0.1", ""])
def test_base_url_is_checked(url: str) -> None:
    """What is not the URL of a site is refused, with what is allowed."""
    with pytest.raises(ValueError, match="it must begin with http:// or https://"):
        run_scenarios(url)
