from __future__ import annotations

from html import escape
from importlib.resources import files
from string import Template

from pyramid.httpexceptions import HTTPSeeOther
from pyramid.response import Response
from pyramid.view import view_config

from sojourn.web.pyramid import Request

PAGE = Template(files(__package__).joinpath("home.html").read_text(encoding="utf-8"))


class TutorialViews:
    def __init__(self, request: Request) -> None:
        self.request = request
        self.session = request.session

    @view_config(route_name="home")
    def home(self) -> Response:
        return self.page("Home View")

    @view_config(route_name="hello")
    def hello(self) -> Response:
        return self.page("Hello View")

    @view_config(route_name="add", request_method="POST")
    def add(self) -> Response:
        # The answer is a redirect: what is to be said about it is said by the next page.
        self.session.append("items", self.request.POST.get("item", ""))
        self.session.flash("Your item was added.")
        return HTTPSeeOther(self.request.route_url("home"))

    def page(self, name: str) -> Response:
        # Two requests at once both count, which they would not with `session["counter"] += 1`.
        count = self.session.add("counter")
        messages = [f"<p>{escape(message)}</p>" for message in self.session.pop_flash()]
        items = [f"<li>{escape(item)}</li>" for item in self.session.get("items", ())]
        return Response(
            PAGE.substitute(
                name=escape(name),
                count=count,
                messages="\n".join(messages),
                items="\n".join(items),
                add=escape(self.request.route_path("add")),
            )
        )
