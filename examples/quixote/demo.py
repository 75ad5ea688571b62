"""Session3's demo, on any store: `python demo.py [--host HOST] [--port PORT] [STORE-URL]`.

Six pages: `/` shows the session, `/keep` has it kept, `/increment` counts, `/incrementfail` counts
and fails, `/logout` ends it, `/logoutfail` ends it and fails. What fails is undone.

Under other servers the store is named by the environment variable `SESSIONS`:

    python -m quixote run --app demo
    python -m quixote.server.scgi_server --factory demo.create_publisher
    gunicorn --workers 4 --threads 8 'demo:make_app()'
    waitress-serve --call demo:make_app
"""

from __future__ import annotations

import argparse
import contextlib
import os
from pathlib import Path
from typing import Any

import quixote
from quixote.directory import Directory
from quixote.errors import AccessError, PublishError
from quixote.html import htmltext
from quixote.server import threaded_server

from sojourn import SessionManager as Sessions
from sojourn.errors import ConfigurationError
from sojourn.web.quixote import Session, SessionManager, ThreadSafePublisher

STORE = "sqlite:///sessions.db"
ACTIONS = {
    "keep": ("Keep", "keep this session"),
    "increment": ("Count", "add one to the counter"),
    "incrementfail": ("Count and fail", "add one, then fail: undone"),
    "logout": ("Log out", "end this session"),
    "logoutfail": ("Log out and fail", "end it, then fail: undone"),
}


class DemoSession(Session):
    """A visitor's counter, and whether the session is to be kept without one."""

    counter = 0
    kept = False

    def has_info(self) -> bool:
        return self.kept or self.counter > 0 or super().has_info()


class Root(Directory):
    _q_exports = ("", *ACTIONS)

    def _q_index(self) -> Any:
        session = quixote.get_session()
        facts = {
            "Session": session.id or "none yet",
            "Made": f"{session.get_creation_age():.0f} seconds ago" if session.id else "not yet",
        }
        return page(
            "Sessions for Quixote",
            htmltext('<p class="count"><span id="counter">%s</span> counted</p><dl>%s</dl>%s%s')
            % (
                session.counter,
                join(
                    "<div><dt>%s</dt><dd id=%s>%s</dd></div>",
                    [(name, name.lower(), value) for name, value in facts.items()],
                ),
                buttons(session),
                links(),
            ),
        )

    def keep(self) -> Any:
        check_form()
        quixote.get_session().kept = True
        return quixote.redirect(".")

    def increment(self) -> Any:
        check_form()
        # Not `counter += 1`: of two requests at once both count.
        quixote.get_session().add("counter")
        return quixote.redirect(".")

    def incrementfail(self) -> Any:
        self.increment()
        raise RuntimeError("this page always fails; the counter stays what it was")

    def logout(self) -> Any:
        check_form()
        quixote.get_session_manager().expire_session()
        return quixote.redirect(".")

    def logoutfail(self) -> Any:
        self.logout()
        raise RuntimeError("this page always fails; the session goes on")


def check_form() -> None:
    """Refuse a form that is not of this session. Links have none; a site would not have these."""
    session = quixote.get_session()
    # Whoever has no session has nothing that a forged form could do to it.
    may_be_forged = quixote.get_request().get_method() == "POST" and session.id is not None
    if may_be_forged and not session.valid_csrf_token():
        raise AccessError("The form is not of this session. Load the page again.")


def buttons(session: DemoSession) -> Any:
    # A token for whoever has no session would make one for each visitor, robots too.
    token = htmltext("")
    if session.id is not None:
        field = htmltext('<input type="hidden" name="csrf_token" value="%s">')
        token = field % session.get_csrf_token()
    return htmltext('<section><h2>By form</h2><div class="row">%s</div></section>') % join(
        '<form method="post" action="%s"><button title="%s">%s</button>%s</form>',
        [(name, what, label, token) for name, (label, what) in ACTIONS.items()],
    )


def links() -> Any:
    return htmltext(
        '<section><h2>By link</h2><p>As Session3’s demo has them.</p><ul><li><a href="">revisit'
        "</a></li>%s</ul></section>"
    ) % join('<li><a href="%s">%s</a></li>', [(name, what) for name, (_, what) in ACTIONS.items()])


def join(template: str, rows: list[tuple[Any, ...]]) -> Any:
    return htmltext("").join([htmltext(template) % row for row in rows])


STYLE = htmltext((Path(__file__).parent / "demo.css").read_text())
LAYOUT = htmltext("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>%s</title>
<style>%s</style>
</head>
<body>
<main>
<h1>%s</h1>
%s
</main>
</body>
</html>
""")


def page(title: str, content: Any) -> Any:
    return LAYOUT % (title, STYLE, title, content)


class DemoPublisher(ThreadSafePublisher):
    """Quixote's publisher, with error pages in our dress."""

    def format_publish_error(self, exc: PublishError) -> Any:
        return message(exc.title, exc.public_msg or exc.description)

    def _generate_internal_error(self, request: Any) -> Any:
        return message("That failed", "Nothing that this page did to your session was kept.")


def message(title: str, text: str) -> Any:
    root = quixote.get_request().get_environ("SCRIPT_NAME", "") + "/"
    return page(title, htmltext('<p>%s</p><p><a href="%s">Back</a></p>') % (text, root))


def create_publisher(store: str | None = None) -> DemoPublisher:
    """Return the publisher; Quixote's servers call it without arguments."""
    sessions = Sessions(store or os.environ.get("SESSIONS", STORE))
    return DemoPublisher(Root(), session_manager=SessionManager(sessions, DemoSession))


def make_app(store: str | None = None) -> Any:
    """Return the WSGI application."""
    create_publisher(store)
    return quixote.get_wsgi_app()


def main() -> None:
    parser = argparse.ArgumentParser(description="Session3's demo, with Sojourn.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("store", nargs="?", default=os.environ.get("SESSIONS", STORE))
    options = parser.parse_args()
    try:
        with contextlib.closing(Sessions(options.store)) as sessions:
            sessions.store  # noqa: B018 - opens it
    except ConfigurationError as error:
        parser.error(str(error))
    print(f"The demo is at http://{options.host}:{options.port}/ (Ctrl-C ends it)", flush=True)
    try:
        threaded_server.run(lambda: create_publisher(options.store), options.host, options.port)
    except KeyboardInterrupt:
        print("Ended.")


if __name__ == "__main__":
    main()
