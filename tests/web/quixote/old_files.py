"""Files as Session3 leaves them in its directory, made without Session3."""

from __future__ import annotations

import os
import pickle
import secrets
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

SESSION = "session3.Session.Session"
DICT_SESSION = "session3.DictSession.DictSession"


def new_id() -> str:
    """Return an id as Session3 makes them: 64 bits, 11 characters."""
    return secrets.token_urlsafe(8)


@contextmanager
def classes_named(*names: str) -> Iterator[list[type[Any]]]:
    """Give classes that pickle under these names, for as long as it is entered."""
    modules: dict[str, types.ModuleType] = {}
    made = []
    for full in names:
        module, _, name = full.rpartition(".")
        steps = module.split(".")
        for end in range(1, len(steps) + 1):
            path = ".".join(steps[:end])
            modules.setdefault(path, types.ModuleType(path))
        made.append(type(name, (), {"__module__": module}))
        setattr(modules[module], name, made[-1])
    with mock.patch.dict(sys.modules, modules):
        yield made


def as_object(cls: type[Any], **attributes: Any) -> Any:
    """Return an object of a class with those attributes, without calling the class."""
    made = object.__new__(cls)
    made.__dict__.update(attributes)
    return made


def pickled(session_id: str, name: str = SESSION, protocol: int = 4, **attributes: Any) -> bytes:
    """Return the pickle of a session with the attributes that Session3 gives one, and more."""
    usual = {
        "id": session_id,
        "user": None,
        "_remote_address": "192.0.2.7",
        "_creation_time": 1_700_000_000.0,
        "_access_time": 1_700_000_100.0,
        "_form_tokens": [],
    }
    with classes_named(name) as (cls,):
        return pickle.dumps(as_object(cls, **usual | attributes), protocol)


def write_session(directory: Path, session_id: str | None = None, **how: Any) -> str:
    """Write a session into a directory as Session3 does; returns its id."""
    session_id = session_id or new_id()
    (directory / session_id).write_bytes(pickled(session_id, **how))
    return session_id


class RunsACommand:
    """Whoever unpickles one by the ordinary way makes a directory of that name."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.makedirs, (str(self.path),)
