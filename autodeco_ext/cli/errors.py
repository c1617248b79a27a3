"""Errors that are the person's to fix: told in one sentence, without a traceback."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Ends a command with exit code 2 and its message, one sentence, on stderr."""


@contextmanager
def told_to_the_user(*kinds: type[Exception]) -> Iterator[None]:
    """Turn these kinds of exceptions into a UserError with the same message on one line.

    The name of the Python function that our own messages begin with is left out.
    """
    try:
        yield
    except kinds as error:
        text = re.sub(r"^autodeco_ext(\.\w+)*: ", "", " ".join(str(error).split()))
        raise UserError(text or type(error).__name__) from error
