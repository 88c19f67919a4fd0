"""Keeping secrets out of output."""

import re

HIDDEN = "***"

# Up to the last @ that a password could end with: an unescaped @ or / may be part of it.
_USER_INFO = re.compile(r"(://[^/@:\s]*):\S*@")
_PARAMETER = re.compile(
    r"((?:password|sslpassword|passfile)\s*=\s*)('[^']*'|[^&\s]*)", re.IGNORECASE
)


def redacted(text: str) -> str:
    """Return a URL or connection string with its password replaced by `***`."""
    return _PARAMETER.sub(rf"\1{HIDDEN}", _USER_INFO.sub(rf"\1:{HIDDEN}@", text))


def redacted_invalid(text: str) -> str:
    """Return the printable form of a malformed secret, in which `redacted` could miss the password:
    nothing at all if there might be one."""
    suspicious = any(mark in text for mark in ("@", "=", " ")) or text.count(":") > 2
    return HIDDEN if suspicious else text
