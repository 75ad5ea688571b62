"""A user's sessions as that user knows them: devices, with their browsers in words."""

from __future__ import annotations

from functools import lru_cache

from sojourn.core.record import Client, Record

__all__ = ["Device", "agent_in_words"]


class Device:
    """One live session of a user, for a page that lists them."""

    __slots__ = ("current", "record")

    def __init__(self, record: Record, current: bool) -> None:
        """Show a record; `current`: it is that of the request itself."""
        self.record = record
        self.current = current

    @property
    def sid(self) -> str:
        """What `SessionManager.end` takes; safe to show."""
        return self.record.sid

    @property
    def user(self) -> str | None:
        """Whose it is."""
        return self.record.user

    @property
    def created(self) -> float:
        """When it was made, in UTC seconds."""
        return self.record.created

    @property
    def authenticated(self) -> float | None:
        """When its user last logged in with it, in UTC seconds."""
        return self.record.authenticated

    @property
    def seen(self) -> float:
        """When it was last used, to within a touch interval, in UTC seconds."""
        return self.record.seen

    @property
    def deadline(self) -> float:
        """When it ends unless it is used, in UTC seconds."""
        return self.record.deadline

    @property
    def client(self) -> Client:
        """Address and agent at the login."""
        return Client(self.record.address, self.record.agent)

    @property
    def agent(self) -> str:
        """The browser in words: "Firefox on Linux"."""
        return agent_in_words(self.record.agent)

    def __repr__(self) -> str:
        return f"<Device {self.sid} {self.agent!r}{' current' if self.current else ''}>"


@lru_cache(maxsize=1000)
def agent_in_words(agent: str) -> str:
    """Return a User-Agent header in words, or "Unknown browser".

    With the package ua-parser (`pip install 'sojourn[devices]'`); without it the header itself.
    """
    if not agent:
        return "Unknown browser"
    try:
        from ua_parser import parse
    except ImportError:
        return agent
    found = parse(agent)
    browser = found.user_agent.family if found.user_agent else ""
    system = found.os.family if found.os else ""
    if browser and system:
        return f"{browser} on {system}"
    return browser or system or "Unknown browser"
