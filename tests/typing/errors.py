"""Every kind of error is a SojournError, so one `except` takes them all."""

from typing import assert_type

from sojourn import errors


def one_except_takes_all() -> None:
    try:
        pass
    except errors.SojournError as error:
        assert_type(error, errors.SojournError)


kinds: list[type[errors.SojournError]] = [
    errors.ConfigurationError,
    errors.Conflict,
    errors.InvalidValue,
    errors.SessionEnded,
    errors.StoreUnavailable,
]

not_a_kind: type[errors.SojournError] = ValueError  # type: ignore[assignment]
