"""How long one index of log lines is written to, by the date in its name: nothing may close it before.

The date is Logstash's, in Joda's letters. Source: Logstash docs, "Accessing event data", sprintf with a date format.
"""

from __future__ import annotations

import re

_DATE = re.compile(r"%\{\+([^}]*)\}")
_PERIODS = (("DdEeHKkhmsSAa", 1), ("w", 7), ("M", 31), ("YyxCG", 366))  # letters -> days, the shortest first


def days_written_to(index: str) -> int | None:
    """Return the days for which an index is written to, a part of one counting as one; None: it has no date, so that
    there is one index for ever.
    """
    date = _DATE.search(index)
    letters = set(date[1]) if date else set()
    return next((days for found, days in _PERIODS if letters & set(found)), None)
