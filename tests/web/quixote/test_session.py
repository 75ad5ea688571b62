"""The session object: attributes, users, tokens, and the mapping."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from datetime import timedelta
from functools import cached_property
from typing import Any, ClassVar

import pytest
import quixote
from quixote.errors import AccessError
from quixote.form import Form

from sojourn.errors import ConfigurationError, InvalidValue
from sojourn.web.quixote import DictSession, Session, SessionManager

from .conftest import Site

MakeSite = Callable[..., Site]


class Visitor(Session):
    """As applications of Session3 write them."""

    colour = "green"
    limits: tuple[int, ...] = (1, 2)

    def __init__(self, id: str | None) -> None:
        Session.__init__(self, id)
        self.counter = 0
        self.basket: list[str] = []

    def has_info(self) -> bool:
        return self.counter > 0 or bool(self.basket) or self.colour != "green" or super().has_info()

    def count(self) -> int:
        self.counter += 1
        return self.counter

    @property
    def twice(self) -> int:
        return 2 * int(self.counter)

    @twice.setter
    def twice(self, value: int) -> None:
        self.counter = value // 2

    @cached_property
    def costly(self) -> object:
        return object()


def mine() -> Any:
    return quixote.get_session()


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    return make_site(Visitor)


# Attributes.


def test_attributes_are_kept(site: Site) -> None:
    """What one request sets, the next one finds, whatever its type."""
    values = {"a": 1, "b": "text", "c": [1, {"d": (2.5, None)}], "e": {1, 2}, "f": b"\0\xff"}

    def write() -> str:
        for name, value in values.items():
            setattr(mine(), name, value)
        return str(mine().count())

    site.visit(write)
    found: dict[str, Any] = {}
    site.visit(lambda: found.update({name: getattr(mine(), name) for name in values}) or "")

    assert found == values


def test_changes_in_place_are_kept(site: Site) -> None:
    """No flag has to be set: a list that was appended to is stored."""
    site.visit(lambda: mine().basket.append("tea") or "")
    site.visit(lambda: mine().basket.append("milk") or "")
    site.visit(lambda: setattr(mine(), "deep", {"a": {"b": [1]}}) or "")
    site.visit(lambda: mine().deep["a"]["b"].append(2) or "")

    answer = site.visit(lambda: repr((mine().basket, mine().deep)))

    assert answer.body == b"(['tea', 'milk'], {'a': {'b': [1, 2]}})"


def test_class_attributes_are_defaults(site: Site) -> None:
    """Until it is set, an attribute is what the class says; deleted, it is that again."""
    assert site.visit(lambda: mine().colour).body == b"green"
    site.visit(lambda: setattr(mine(), "colour", "red") or "")
    assert site.visit(lambda: mine().colour).body == b"red"
    site.visit(lambda: delattr(mine(), "colour") or str(mine().count()))
    assert site.visit(lambda: mine().colour).body == b"green"
    assert Visitor.colour == "green"


def test_two_sessions_share_nothing(site: Site) -> None:
    """What one visitor sets, another does not see."""
    site.visit(lambda: setattr(mine(), "colour", "red") or "")
    first, site.cookie = site.cookie, ""
    site.visit(lambda: setattr(mine(), "colour", "blue") or "")

    assert site.request(lambda: mine().colour, cookie=first).body == b"red"
    assert site.visit(lambda: mine().colour).body == b"blue"


def test_init_runs_for_a_new_session_alone(site: Site) -> None:
    """As with pickles: what was kept is not begun anew, and lacks what a newer class would set."""
    site.visit(lambda: str(mine().count()))
    site.visit(lambda: delattr(mine(), "basket") or str(mine().count()))

    answer = site.visit(lambda: f"{mine().counter} {hasattr(mine(), 'basket')}")

    assert answer.body == b"2 False"


def test_methods_and_properties(site: Site) -> None:
    """They are the class's, and use attributes as they like; what is cached is the request's."""
    site.visit(lambda: setattr(mine(), "twice", 10) or "")

    def page() -> str:
        assert mine().costly is mine().costly
        return f"{mine().twice} {mine().counter}"

    assert site.visit(page).body == b"10 5"
    assert site.verbs == ["create", "load"]


def test_a_name_that_is_a_method(site: Site) -> None:
    """It can hold no value: it would be a method here and a value there."""

    def page() -> str:
        with pytest.raises(InvalidValue, match=r"session\.count = .*is a method of"):
            mine().count = 5
        with pytest.raises(AttributeError):
            mine().id = "mine"
        return "refused"

    assert site.visit(page).body == b"refused"


def test_an_attribute_that_is_not_there(site: Site) -> None:
    """Reading and deleting it are an AttributeError, as with any object."""

    def page() -> str:
        with pytest.raises(AttributeError, match="nothing"):
            mine().nothing  # noqa: B018
        with pytest.raises(AttributeError, match="nothing"):
            del mine().nothing
        assert getattr(mine(), "nothing", 5) == 5
        return "done"

    assert site.visit(page).body == b"done"


@pytest.mark.parametrize("deep", [False, True])
def test_a_value_that_cannot_be_stored(site: Site, deep: bool) -> None:
    """The page fails with an error that names the attribute; the session before it is whole."""
    site.visit(lambda: str(mine().count()))

    def page() -> str:
        mine().count()
        mine().thing = [object()] if deep else object()
        return "stored"

    assert site.visit(page).status == 500
    assert "InvalidValue: session['thing']" in site.log.getvalue()
    assert site.visit(lambda: str(mine().counter)).body == b"1"


def test_a_value_that_cannot_be_stored_on_an_error_page(site: Site) -> None:
    """Where a PublishError commits, the client gets an answer too, and the log the reason."""
    site.visit(lambda: str(mine().count()))

    def page() -> str:
        mine().count()
        mine().thing = [object()]
        raise AccessError

    answer = site.visit(page)

    assert answer.status == 500
    assert b"Internal Server Error" in answer.body
    assert "InvalidValue" in site.log.getvalue()
    assert site.visit(lambda: str(mine().counter)).body == b"1"


def test_adding_merges(site: Site) -> None:
    """Two requests at once that add and append both count; a default is where it begins."""

    class Later(Visitor):
        hits = 10

    site.manager.session_class = Later
    site.visit(lambda: str(mine().count()))

    def page() -> str:
        first = f"{mine().add('hits')} {mine().add('counter', 2)}"
        mine().append("basket", "tea")

        def other() -> str:
            mine().append("basket", "milk")
            return f"{mine().add('hits', 5)} {mine().add('counter', 3)}"

        # A second request comes and goes while this one is on its way.
        here = quixote.get_request()
        assert site.request(other).body == b"15 4"
        quixote.get_publisher()._set_request(here)
        return first

    assert site.visit(page).body == b"11 3"
    kept = site.visit(lambda: f"{mine().counter} {sorted(mine().basket)} {mine().hits}")
    assert kept.body == b"6 ['milk', 'tea'] 16"


def test_merging_begins_with_the_default(site: Site) -> None:
    """Of numbers and lists, once, up and down; and the class keeps its own."""

    class Later(Visitor):
        tries = 3
        drinks: ClassVar = ["tea"]

    site.manager.session_class = Later
    site.visit(lambda: str(mine().count()))

    def change() -> str:
        mine().add("tries", -1)
        mine().append("drinks", "milk")
        return f"{mine().tries} {mine().drinks}"

    def page() -> str:
        first = change()
        here = quixote.get_request()
        assert site.request(change).body == b"2 ['tea', 'milk']"
        quixote.get_publisher()._set_request(here)
        return first

    assert site.visit(page).body == b"2 ['tea', 'milk']"
    kept = site.visit(lambda: f"{mine().tries} {mine().drinks}")
    assert kept.body == b"1 ['tea', 'milk', 'milk']"
    assert Later.drinks == ["tea"]


def test_slots_are_not_kept(make_site: MakeSite) -> None:
    """What is for this request alone has its place in `__slots__`."""

    class Slim(Session):
        __slots__ = ("scratch",)

    site = make_site(Slim)

    def page() -> str:
        mine().scratch = object()
        mine().set_user("ann")
        return str(mine().scratch is not None)

    assert site.visit(page).body == b"True"
    assert site.visit(lambda: str(hasattr(mine(), "scratch"))).body == b"False"


def test_what_it_says_of_itself(site: Site) -> None:
    """As text it tells id and user, to a debugger no more than that; dump tells all but secrets."""
    assert site.visit(lambda: repr(mine())).body == b"<Visitor on <Session not loaded>>"
    assert site.visit(lambda: str(mine())).body == b"session None (no user)"
    site.visit(lambda: mine().set_user("ann") or str(mine().count()))
    token = site.visit(lambda: mine().get_csrf_token()).body.decode()
    sid = site.visit(lambda: mine().id).body.decode()
    file = io.StringIO()

    def page() -> str:
        mine().dump(file)
        return str(mine())

    assert site.visit(page).body.decode() == f"session {sid} (user ann)"
    lines = file.getvalue().splitlines()
    assert lines[:3] == [f"session {sid}:", "  user: ann", "  remote address: 192.0.2.7"]
    assert lines[3].startswith("  created: 20")
    assert sorted(lines[4:]) == ["  basket: []", "  counter: 1"]
    assert token not in file.getvalue()


def test_it_cannot_be_copied(site: Site) -> None:
    """A copy would stand for the same request, and each would write it."""
    import copy
    import pickle

    def page() -> str:
        for how in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="cannot be copied"):
                how(mine())  # type: ignore[operator]
        return "done"

    assert site.visit(page).body == b"done"


# Users and times.


def test_login_renews_the_secret(site: Site) -> None:
    """An id that was planted before the login opens nothing after it; the sid stays."""
    site.visit(lambda: str(mine().count()))
    planted = site.cookie
    sid = site.visit(lambda: mine().id).body

    site.visit(lambda: mine().set_user("ann") or "")

    assert site.cookie != planted
    assert site.visit(lambda: f"{mine().id} {mine().user} {mine().counter}").body == (
        sid + b" ann 1"
    )
    for _ in range(2):
        copied = site.request(lambda: repr((mine().user, mine().counter)), cookie=planted)
        assert copied.body == b"(None, 0)"
        site.clock.advance(11)


@pytest.mark.parametrize("how", ["set_user", "assign"])
def test_who_is_logged_in(site: Site, how: str) -> None:
    """`set_user`, `get_user`, `user` and Quixote's `get_user()` are one."""
    if how == "set_user":
        site.visit(lambda: mine().set_user("ann") or "")
    else:
        site.visit(lambda: setattr(mine(), "user", "ann") or "")

    answer = site.visit(lambda: f"{mine().user} {mine().get_user()} {quixote.get_user()}")

    assert answer.body == b"ann ann ann"
    assert [device.user for device in site.sessions.of_user("ann")] == ["ann"]


def test_assigning_the_same_user_writes_nothing(site: Site) -> None:
    """An application may assign the user at each request, as from its web server's log-in."""
    site.visit(lambda: mine().set_user("ann") or "")
    site.verbs  # noqa: B018

    answer = site.visit(lambda: setattr(mine(), "user", "ann") or "")

    assert site.verbs == ["load"]
    assert answer.token == ""


def test_no_user_any_more(site: Site) -> None:
    """`set_user(None)` ends the session; attributes go on in a new one that is worth it."""
    site.visit(lambda: mine().set_user("ann") or str(mine().count()))
    old = site.cookie
    token = site.visit(lambda: mine().get_csrf_token()).body.decode()

    site.visit(lambda: mine().set_user(None) or "")

    assert site.sessions.of_user("ann") == []
    assert site.visit(lambda: repr((mine().user, mine().counter))).body == b"(None, 1)"
    assert site.request(lambda: repr(mine().user), cookie=old).body == b"None"
    assert site.post(lambda: str(mine().valid_csrf_token()), f"csrf_token={token}").body == b"False"


def test_no_user_and_nothing_else(make_site: MakeSite) -> None:
    """Where nothing is left worth being kept, the cookie goes too."""
    site = make_site()
    site.visit(lambda: mine().set_user("ann") or mine().get_csrf_token())

    answer = site.visit(lambda: mine().set_user(None) or "")

    assert "Max-Age=0" in answer.all("Set-Cookie")[0]
    assert site.store.count() == 0


def test_a_user_that_is_no_text(site: Site) -> None:
    """The error says what a user is; nothing is changed."""
    assert site.visit(lambda: mine().set_user(42) or "").status == 500
    assert "a user is a str of 1 to 255 characters" in site.log.getvalue()


def test_users_that_are_objects(make_site: MakeSite) -> None:
    """The override that Quixote's documentation tells of: keep the id, give out the object."""

    class User:
        def __init__(self, name: str) -> None:
            self.name = name

    class Members(Session):
        def set_user(self, user: Any) -> None:
            super().set_user(user.name)

        def get_user(self) -> Any:
            return User(self.user) if self.user else None

    site = make_site(Members)
    site.visit(lambda: mine().set_user(User("ann")) or "")

    assert site.visit(lambda: mine().get_user().name).body == b"ann"


def test_ages(site: Site) -> None:
    """Times are UTC seconds, ages seconds; looking at them extends the session as any use does."""
    start = site.clock()
    site.visit(lambda: str(mine().count()))
    site.clock.advance(200)
    seen: list[float] = []

    def page() -> str:
        session = mine()
        seen[:] = [
            session.get_creation_time(),
            session.get_creation_age(),
            session.get_access_time(),
            session.get_access_age(),
            session.get_creation_age(start + 5),
            session.get_access_age(start + 7),
        ]
        return session.get_remote_address()

    assert site.visit(page).body == b"192.0.2.7"
    assert seen == [start, 200, start, 200, 5, 7]
    site.clock.advance(10)
    site.visit(page)
    assert seen[:4] == [start, 210, start + 200, 10]


def test_the_address_is_of_who_made_it(site: Site) -> None:
    """It stays, wherever the visitor goes."""
    site.visit(lambda: str(mine().count()), REMOTE_ADDR="192.0.2.1")

    answer = site.visit(lambda: mine().get_remote_address(), REMOTE_ADDR="192.0.2.2")

    assert answer.body == b"192.0.2.1"


def test_remote_user(site: Site) -> None:
    """The environment names the user, when it is asked; asking is a look at the session."""

    def ask() -> str:
        return repr(quixote.get_request().get_environ("REMOTE_USER"))

    assert site.visit(ask).body == b"None"
    site.visit(lambda: mine().set_user("ann") or "")
    environ = lambda: quixote.get_request().environ  # noqa: E731
    for page in (
        ask,
        lambda: repr(environ()["REMOTE_USER"]),
        lambda: repr("REMOTE_USER" in environ() and dict(environ())["REMOTE_USER"]),
    ):
        answer = site.visit(page)
        assert answer.body == b"'ann'"
        assert answer.one("Vary") == "Cookie"
    site.verbs  # noqa: B018
    assert site.visit(lambda: quixote.get_request().get_environ("SERVER_NAME")).all("Vary") == []
    assert site.verbs == []


def test_remote_user_of_the_web_server(site: Site) -> None:
    """Where nobody is logged in here, what the web server says stands."""

    def ask() -> str:
        return repr(quixote.get_request().get_environ("REMOTE_USER"))

    assert site.visit(ask, REMOTE_USER="basic").body == b"'basic'"
    site.visit(lambda: mine().set_user("ann") or "")
    assert site.visit(ask, REMOTE_USER="basic").body == b"'ann'"

    def own() -> str:
        quixote.get_request().environ["REMOTE_USER"] = "page"
        return ask()

    assert site.visit(own).body == b"'page'"


def test_remembered(site: Site) -> None:
    """The cookie outlives the browser; the session ends when it was said."""
    answer = site.visit(lambda: mine().set_user("ann") or mine().remember(timedelta(days=30)) or "")

    assert "Max-Age=2592000" in answer.all("Set-Cookie")[0]


def test_renewed(site: Site) -> None:
    """A new secret without a login."""
    site.visit(lambda: str(mine().count()))
    old = site.cookie
    site.visit(lambda: mine().renew() or "")

    assert site.cookie != old
    site.clock.advance(11)
    assert site.request(lambda: str(mine().counter), cookie=old).body == b"0"
    assert site.visit(lambda: str(mine().counter)).body == b"1"


# Tokens of forms.


def test_a_form_of_an_anonymous_visitor(make_site: MakeSite) -> None:
    """The token makes a session that lasts until the form comes back; it is good once."""
    site = make_site()
    token = site.visit(lambda: mine().create_form_token()).body.decode()
    assert site.cookie

    def send() -> str:
        good = mine().has_form_token(token)
        if good:
            mine().remove_form_token(token)
        return str(good)

    assert site.visit(send).body == b"True"
    assert site.visit(send).body == b"False"


def test_form_tokens(make_site: MakeSite) -> None:
    """Each is another one; none is good for another visitor, and none of what else comes in."""
    site = make_site()
    tokens = [site.visit(lambda: mine().create_form_token()).body.decode() for _ in range(40)]

    assert len(set(tokens)) == 40
    # Not only the last 16 are good, as with Quixote's own.
    assert site.visit(lambda: str([mine().has_form_token(one) for one in tokens])).body == (
        str([True] * 40).encode()
    )
    for wrong in (None, "", "x", tokens[0][:-1], tokens[0] + "x", 5, ["a"], tokens[0].swapcase()):
        assert site.visit(lambda wrong=wrong: str(mine().has_form_token(wrong))).body == b"False"
    site.cookie = ""
    site.visit(lambda: mine().create_form_token())
    assert site.visit(lambda: str(mine().has_form_token(tokens[0]))).body == b"False"


def test_used_form_tokens_stay_used(make_site: MakeSite) -> None:
    """The last 64 are known; a token that is not good cannot be removed."""
    site = make_site()
    tokens = [site.visit(lambda: mine().create_form_token()).body.decode() for _ in range(70)]
    for token in tokens:
        site.visit(lambda token=token: mine().remove_form_token(token) or "")

    def page() -> str:
        with pytest.raises(ValueError, match="used already"):
            mine().remove_form_token(tokens[-1])
        return str(sum(mine().has_form_token(token) for token in tokens))

    assert site.visit(page).body == b"6"


def test_showing_a_form_writes_nothing(site: Site) -> None:
    """Only the first one of an anonymous visitor does."""
    site.visit(lambda: mine().set_user("ann") or "")
    site.verbs  # noqa: B018
    site.visit(lambda: mine().create_form_token())
    assert site.verbs == ["load"]


@pytest.mark.parametrize("user", [None, "ann"])
def test_quixotes_forms(make_site: MakeSite, user: str | None) -> None:
    """With FORM_TOKENS Quixote's form is taken once, from anonymous visitors too."""
    site = make_site(config={"form_tokens": True})
    if user:
        site.visit(lambda: mine().set_user(user) or "")

    def page() -> Any:
        form = Form()
        form.add_string("name")
        form.add_submit("send")
        if not form.is_submitted() or form.has_errors():
            return form.render()
        return "taken"

    shown = site.visit(page).body.decode()
    field = next(tag for tag in re.findall("<input[^>]*>", shown) if "_form_id" in tag)
    token = re.findall(r'value="([^"]*)"', field)[0]

    assert site.post(page, f"name=x&send=send&_form_id={token}").body == b"taken"
    assert b"already" in site.post(page, f"name=x&send=send&_form_id={token}").body
    assert b"already" in site.post(page, "name=x&send=send&_form_id=guess").body


def test_csrf_token(make_site: MakeSite) -> None:
    """One for the session, checked in a POST alone; gone after the login."""
    site = make_site()
    token = site.visit(lambda: mine().get_csrf_token()).body.decode()

    def check() -> str:
        return str(mine().valid_csrf_token())

    assert site.visit(lambda: mine().get_csrf_token()).body.decode() == token
    assert site.post(check, f"csrf_token={token}").body == b"True"
    assert site.post(lambda: str(mine().valid_csrf_token("t")), f"t={token}").body == b"True"
    assert site.post(check, f"csrf_token=x&csrf_token={token}").body == b"True"
    for wrong in ("", "csrf_token=", "csrf_token=x", f"other={token}", f"csrf_token={token}x"):
        assert site.post(check, wrong).body == b"False"
    assert site.visit(check, QUERY_STRING=f"csrf_token={token}").body == b"False"
    site.visit(lambda: mine().set_user("ann") or "")
    assert site.post(check, f"csrf_token={token}").body == b"False"
    new = site.visit(lambda: mine().get_csrf_token()).body.decode()
    assert site.post(check, f"csrf_token={new}").body == b"True"


# The mapping.


def test_keys_without_a_user(make_site: MakeSite) -> None:
    """They are kept, and so is the cookie."""
    site = make_site(DictSession)
    site.visit(lambda: mine().update(a=1, b=[2]) or "")
    site.visit(lambda: mine()["b"].append(3) or "")

    assert site.visit(lambda: repr(dict(mine()))).body == b"{'a': 1, 'b': [2, 3]}"


def test_a_user_without_keys(make_site: MakeSite) -> None:
    """He is kept, though the mapping is empty."""
    site = make_site(DictSession)
    site.visit(lambda: mine().set_user("ann") or "")

    assert site.visit(lambda: repr((mine().user, len(mine()), bool(mine())))).body == (
        b"('ann', 0, False)"
    )


def test_keys_and_attributes_are_apart(make_site: MakeSite) -> None:
    """The same name can be both, and iteration shows keys alone."""
    site = make_site(DictSession)

    def write() -> str:
        mine()["colour"] = "red"
        mine().colour = "blue"
        return mine().get_csrf_token()

    site.visit(write)

    answer = site.visit(
        lambda: repr(
            (mine()["colour"], mine().colour, list(mine()), ".colour" in mine(), mine().get("x", 5))
        )
    )
    assert answer.body == b"('red', 'blue', ['colour'], False, 5)"


def test_a_mapping_of_attributes_alone(make_site: MakeSite) -> None:
    """Attributes are no keys, so they alone are not worth a session, as with `Session`."""
    site = make_site(DictSession)

    assert site.visit(lambda: setattr(mine(), "colour", "blue") or "").token == ""


def test_deleting_keys(make_site: MakeSite) -> None:
    """Without keys and without a user the session is over, and the cookie goes."""
    site = make_site(DictSession)
    site.visit(lambda: mine().update(a=1, b=2) or "")
    site.visit(lambda: str(mine().pop("a")))
    assert site.visit(lambda: repr(dict(mine()))).body == b"{'b': 2}"

    answer = site.visit(lambda: mine().clear() or "")

    assert "Max-Age=0" in answer.all("Set-Cookie")[0]
    assert site.store.count() == 0


def test_keys_that_cannot_be(make_site: MakeSite) -> None:
    """A key that would be an attribute is refused, and found nowhere."""
    site = make_site(DictSession)

    def page() -> str:
        mine().colour = "blue"
        with pytest.raises(InvalidValue, match="must not begin with a dot"):
            mine()[".colour"] = 1
        for use in (lambda: mine()[".colour"], lambda: mine().__delitem__(".colour")):
            with pytest.raises(KeyError):
                use()
        return mine().colour

    assert site.visit(page).body == b"blue"


def test_adding_to_an_attribute_of_a_mapping(make_site: MakeSite) -> None:
    """`add` and `append` are for attributes; of keys they are the Sojourn session's."""
    site = make_site(DictSession)

    def page() -> str:
        mine()["n"] = 10
        return f"{mine().add('n')} {mine().sojourn.add('n')}"

    assert site.visit(page).body == b"1 11"
    assert site.visit(lambda: f"{mine()['n']} {mine().n}").body == b"11 1"


# Made wrongly.


@pytest.mark.parametrize("name", ["user", "id", "has_info", "add"])
def test_defaults_that_are_in_the_way(name: str) -> None:
    """With `user = None` in the class a login would be a mere attribute; it is refused at once."""
    with pytest.raises(ConfigurationError, match=rf"Hidden\.{name} = None would take the place"):
        type("Hidden", (Session,), {name: None})


def test_wrong_arguments() -> None:
    """All that is wrong with a manager's arguments comes in one error, with what to do."""

    class Alien:
        pass

    with pytest.raises(ConfigurationError) as caught:
        SessionManager("sqlite:///x.db", Alien)  # type: ignore[arg-type]

    assert "sessions is 'sqlite:///x.db'; it must be a sojourn.SessionManager" in str(caught.value)
    assert "Alien'>; it must be sojourn.web.quixote.Session or a subclass" in str(caught.value)
