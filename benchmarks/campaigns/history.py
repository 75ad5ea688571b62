"""What workers wrote down, compared with what the store holds in the end.

A session is a counter and a list that every request changes together: it appends a value that
nobody else appends, and adds one. So each acknowledged change can be looked for by itself, and one
that was made twice shows.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.campaigns.worker import manager_of
from sojourn.core.opening import Opened
from sojourn.core.record import ENDED, LIVE
from sojourn.core.session import Session

__all__ = ["Report", "check", "read"]


class Report(msgspec.Struct):
    """What was found.

    Attributes:
        counts: how much there was of what.
        faults: a sentence for each promise that was broken.
        lost_at: when each of these was acknowledged.
        risen: sessions that are alive after an acknowledged end.
        missed: sessions that an end of all sessions of their user did not find, where that is no
            fault: what says whose they are was lost.
    """

    counts: Counter[str]
    faults: list[str] = []
    lost_at: list[float] = []
    risen: int = 0
    missed: int = 0

    @property
    def lost(self) -> int:
        """How many acknowledged changes are not there."""
        return len(self.lost_at)


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of all workers in the order of their times; a torn last one is left out."""
    lines = []
    for file in folder.glob("*.log"):
        for line in file.read_bytes().split(b"\n")[:-1]:
            lines.append(json.loads(line))
    return sorted(lines, key=lambda line: line["at"])


def check(folder: Path, url: str, loses: bool = False) -> Report:
    """Compare; all workers have ended.

    Args:
        folder: where they wrote.
        url: of the store.
        loses: the store may lose what it acknowledged (a failover of Redis): that is counted, and
            no fault. What is wrong or mixed up still is one.
    """
    report = Report(Counter())
    lines = read(folder)
    tried, acknowledged, ends = _sort(lines, report)
    # What workers that were killed had begun to end is brought to its end: their leases are over
    # by this clock, and no session that is in use is.
    manager = manager_of(url, 400.0)
    finished = []

    def on_ended(session: Session, reason: str) -> None:
        finished.append(
            {"sid": session.sid, "reason": reason, "n": session.get("n"), "log": session.get("log")}
        )

    manager.on_ended(on_ended)
    while (swept := manager.sweep()).ended or swept.failed:
        if swept.failed:
            report.faults.append(f"{swept.failed} handlers failed")
            break
    handled: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in [*(line for line in lines if line.get("do") == "handler"), *finished]:
        handled[line["sid"]].append(line)
    report.counts["handlers run"] = sum(map(len, handled.values()))
    report.counts["handlers run again"] = sum(len(ran) - 1 for ran in handled.values())
    for sid, values in tried.items():
        record = manager.store.load(sid)
        wanted = acknowledged[sid]
        if record is not None and record.status == LIVE:
            opened = Opened(0.0, record, record.data)
            session = Session(manager._env, lambda opened=opened: opened)  # type: ignore[misc]
            report.counts["alive in the end"] += 1
            missing = _compare(sid, session.get("n"), session.get("log"), wanted, values, report)
            if missing and not loses:
                report.faults.append(f"{sid}: {missing} acknowledged changes are lost")
            if ends.ended(sid) or (not loses and ends.ended_with_all(sid)):
                report.risen += 1
                if not loses:
                    report.faults.append(f"{sid} was ended, and is alive")
            elif record.user is not None and ends.ended_with_all(sid) == record.user:
                # Where the login was lost instead, the session is the visitor's from before it.
                report.missed += 1
            continue
        if record is None or record.status != ENDED:
            # A tombstone is kept for a day.
            if wanted:
                report.lost_at += wanted.values()
                if not loses:
                    report.faults.append(f"{sid}: {'no' if record is None else 'half a'} tombstone")
            continue
        report.counts["ended"] += 1
        if not ends.explain(sid):
            report.faults.append(f"{sid} has ended ({record.reason}), and nobody ended it")
        ran = handled.get(sid, [])
        if not ran and not loses:
            report.faults.append(f"{sid} has ended, and no handler ran")
        for line in ran:
            missing = _compare(sid, line["n"], line["log"], wanted, values, report)
            if missing and not loses:
                report.faults.append(f"{sid}: its handler saw {missing} changes too few")
    late = ends.used_afterwards(lines, loses)
    report.risen += len(late)
    if not loses:
        report.faults += [f"{sid} took a change after its acknowledged end" for sid in late]
    manager.close()
    return report


def _compare(
    sid: str, number: Any, log: Any, wanted: dict[str, float], values: set[str], report: Report
) -> int:
    """Look for faults that no store may have; count and return how many changes are missing."""
    found = log or []
    report.counts["changes found"] += len(found)
    if number != len(found):
        report.faults.append(f"{sid} counts {number}, and lists {len(found)}: they were torn apart")
    if len({*found}) != len(found):
        twice = [value for value, times in Counter(found).items() if times > 1]
        report.faults.append(f"{sid} holds {twice[:3]} twice")
    if foreign := {*found} - values:
        report.faults.append(f"{sid} holds {[*foreign][:3]}, which is not its own")
    missing = [at for value, at in wanted.items() if value not in found]
    report.lost_at += missing
    return len(missing)


class _Ends:
    """Who ended what."""

    def __init__(self) -> None:
        self._tried: set[str] = set()
        self._short: set[str] = set()
        self._at: dict[str, float] = {}
        self._at_of_user: dict[str, tuple[str, float]] = {}
        self._users: dict[str, set[str]] = defaultdict(set)
        self._logins: dict[str, dict[str, float]] = defaultdict(dict)
        self._tried_users: set[str] = set()

    def begin(self, line: dict[str, Any]) -> None:
        if line["do"] == "logout":
            self._tried.add(line["sid"])
        if line["do"] == "end all":
            self._tried_users.add(line["user"])
        elif "user" in line:
            self._users[line["sid"]].add(line["user"])
        if line.get("short"):
            self._short.add(line["sid"])

    def acknowledge(self, line: dict[str, Any], answer: dict[str, Any]) -> None:
        if line["do"] == "logout":
            self._end(line["sid"], answer["at"])
        elif line["do"] == "end all":
            for sid in answer["sids"]:
                self._end(sid, answer["at"])
            for sid, at in self._logins[line["user"]].items():
                if at < line["at"]:
                    self._at_of_user.setdefault(sid, (line["user"], answer["at"]))
        elif "user" in line:
            self._logins[line["user"]].setdefault(line["sid"], answer["at"])

    def _end(self, sid: str, at: float) -> None:
        self._at[sid] = min(at, self._at.get(sid, at))

    def ended(self, sid: str) -> bool:
        """Tell whether its own end was acknowledged."""
        return sid in self._at

    def ended_with_all(self, sid: str) -> str:
        """Return the user all of whose sessions were ended after it was logged in; or ""."""
        return self._at_of_user.get(sid, ("", 0.0))[0]

    def explain(self, sid: str) -> bool:
        return sid in self._tried | self._short or bool(self._users[sid] & self._tried_users)

    def used_afterwards(self, lines: list[dict[str, Any]], loses: bool) -> list[str]:
        """Return the sids that took a change which was asked for after an acknowledged end."""
        over = {} if loses else {sid: at for sid, (_, at) in self._at_of_user.items()}
        for sid, at in self._at.items():
            over[sid] = min(at, over.get(sid, at))
        asked = {line["id"]: line for line in lines if "id" in line}
        found = []
        for line in lines:
            begun = asked.get(line.get("ack", ""))
            if begun is None or begun["do"] in ("logout", "end all"):
                continue
            if begun["at"] > over.get(begun["sid"], float("inf")):
                found.append(begun["sid"])
        return found


def _sort(
    lines: list[dict[str, Any]], report: Report
) -> tuple[dict[str, set[str]], dict[str, dict[str, float]], _Ends]:
    """Return what was tried and what was acknowledged when, for each sid; and the ends."""
    tried: dict[str, set[str]] = defaultdict(set)
    acknowledged: dict[str, dict[str, float]] = defaultdict(dict)
    ends, asked = _Ends(), {}
    for line in lines:
        if "id" in line:
            asked[line["id"]] = line
            report.counts[f"{line['do']} asked"] += 1
            if "sid" in line:
                tried[line["sid"]].add(line["id"])
            ends.begin(line)
        elif "ack" in line:
            begun = asked[line["ack"]]
            report.counts[f"{begun['do']} acknowledged"] += 1
            if begun["do"] not in ("logout", "end all", "touch"):
                acknowledged[begun["sid"]][begun["id"]] = line["at"]
            ends.acknowledge(begun, line)
        elif "dropped" in line:
            report.counts[f"dropped ({line['why']})"] += 1
        elif "error" in line:
            report.counts[line["error"]] += 1
        elif line.get("do") == "sweep":
            report.counts["swept"] += line["ended"]
    return tried, acknowledged, ends
