"""Keeping secrets out of what is printed."""

import re

_USER_INFO = re.compile(r"(://[^/@:\s]*):[^@\s]*@")
_QUERY = re.compile(r"((?:password|sslpassword|passfile)=)[^&\s]*", re.IGNORECASE)


def redacted(text: str) -> str:
    """Return a URL with its password replaced by `***`."""
    return _QUERY.sub(r"\1***", _USER_INFO.sub(r"\1:***@", text))
