"""The site of the HTTP scenarios on Twisted: `python app.py STORE`; prints its URL.

`--asyncio` installs the asyncio reactor; `--deferred` takes the URL for `TwistedRedisStore`.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Any

if "--asyncio" in sys.argv:
    from twisted.internet import asyncioreactor

    asyncioreactor.install()

from twisted.internet import endpoints, reactor, task
from twisted.internet.defer import ensureDeferred
from twisted.logger import globalLogBeginner, textFileLogObserver
from twisted.python.components import registerAdapter
from twisted.web import resource, server
from zope.interface import Attribute, Interface, implementer

from sojourn import Append, CsrfError, SessionManager, state
from sojourn.web.twisted import SessionSite
from sojourn.web.twisted.deferred import DeferredSessions


@state("cart")
@dataclass
class Cart:
    items: Annotated[list[str], Append] = field(default_factory=list)


class ICounter(Interface):
    value = Attribute("how often")


ICounter["value"].setTaggedValue("merge", "add")


@implementer(ICounter)
class Counter:
    def __init__(self, session: Any) -> None:
        self.value = 0


registerAdapter(Counter, server.Session, ICounter)


class Api(resource.Resource):
    isLeaf = True

    def __init__(self, sessions: SessionManager) -> None:
        super().__init__()
        self.ask = DeferredSessions(sessions)

    def render(self, request: Any) -> Any:
        query = {key.decode(): values[0].decode() for key, values in request.args.items()}
        name = f"{request.method.decode()} {request.path.decode().rpartition('/')[2]}"
        if name == "GET quiet":
            return self.told(request, {"ok": True})
        made = self.answer(name, request, query.get("key", ""), query)
        return made if made == server.NOT_DONE_YET else self.told(request, made)

    def told(self, request: Any, what: Any) -> bytes:
        request.setHeader("Content-Type", "application/json")
        return json.dumps(what).encode()

    def answer(self, name: str, request: Any, key: str, query: dict[str, str]) -> Any:
        session = request.getSession()
        match name:
            case "GET get":
                return {"value": session.get(key)}
            case "POST set":
                session[key] = query.get("value", "")
                return {"value": session[key]}
            case "POST add":
                return {"value": session.add(key)}
            case "POST slow-add":
                ensureDeferred(self.slow_add(request, key))
                return server.NOT_DONE_YET
            case "POST count":
                counter = ICounter(session)
                counter.value += 1
                return {"value": counter.value, "pid": os.getpid()}
            case "POST locked":
                ensureDeferred(self.locked(request, key))
                return server.NOT_DONE_YET
            case "GET cart":
                return {"items": session[Cart].items}
            case "POST cart":
                session[Cart].items.append(query.get("item", ""))
                return {"items": session[Cart].items}
            case "GET flash":
                return {"messages": session.pop_flash()}
            case "POST flash":
                session.flash(query.get("text", ""))
            case "GET token":
                return {"token": session.csrf_token}
            case "POST form":
                try:
                    session.check_csrf(query.get("token", ""))
                except CsrfError:
                    request.setResponseCode(403)
                    return {"ok": False}
            case "GET me":
                ended = session.ended_before
                return {
                    "user": session.user,
                    "sid": session.sid,
                    "new": session.is_new,
                    "ended": ended.reason if ended else None,
                }
            case "POST login":
                session.login(query["user"])
                return {"user": query["user"]}
            case "POST remember":
                session.login(query["user"])
                session.remember(timedelta(days=30))
                return {"user": query["user"]}
            case "POST renew":
                session.renew()
            case "POST logout":
                session.logout()
            case "POST end-others":
                ensureDeferred(self.end_others(request, session))
                return server.NOT_DONE_YET
            case "POST stream":
                session.get(key)
                request.setHeader("Content-Type", "text/plain")
                request.write(b"one\n")
                ensureDeferred(self.rest(request, session, key))
                return server.NOT_DONE_YET
            case "POST fail":
                session.add(key)
                raise RuntimeError("as it was asked to")
            case _:
                request.setResponseCode(404)
        return {"ok": True}

    async def rest(self, request: Any, session: Any, key: str) -> None:
        await task.deferLater(reactor, 0.01)
        session.add(key)
        request.write(b"two\n")
        request.finish()

    async def slow_add(self, request: Any, key: str) -> None:
        session = request.getSession()
        value = session.get(key, 0) + 1
        await task.deferLater(reactor, 0.01)
        session[key] = value
        request.write(self.told(request, {"value": value}))
        request.finish()

    async def locked(self, request: Any, key: str) -> None:
        session = await request.getSession().exclusive(wait=30.0)
        value = session.get(key, 0)
        await task.deferLater(reactor, 0.01)
        session[key] = value + 1
        request.write(self.told(request, {"value": value + 1}))
        request.finish()

    async def end_others(self, request: Any, session: Any) -> None:
        ended = []
        if session.user is not None:
            ended = await self.ask.end_all(session.user, keep=session.sid)
        request.write(self.told(request, {"ended": len(ended)}))
        request.finish()


def main(store: Any) -> None:
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)
    if "--deferred" in sys.argv:
        from sojourn.web.twisted.redis import TwistedRedisStore

        store = TwistedRedisStore(store)
    sessions = SessionManager(store)
    site = SessionSite(Api(sessions), sessions)

    def listening(port: Any) -> None:
        print(f"http://127.0.0.1:{port.getHost().port}", flush=True)

    endpoint = endpoints.TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
    endpoint.listen(site).addCallback(listening)
    reactor.run()


if __name__ == "__main__":
    main(sys.argv[1])
