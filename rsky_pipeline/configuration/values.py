"""Turning the text of a setting into its value; each refusal names the allowed values."""

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from rsky_pipeline.configuration.endpoints import normal_host, parse_endpoint, shortened
from rsky_pipeline.configuration.proxy import parse_proxy
from rsky_pipeline.configuration.settings import SettingInfo, Settings
from rsky_pipeline.configuration.store_urls import database_url, redis_url
from rsky_pipeline.configuration.topology import ROLE_NAMES

# An NSID has at least three segments; a prefix that ends in a dot at least one. Its first segment
# begins with a letter, and its last one has only letters and digits (AT Protocol, NSID).
_FIRST = r"[A-Za-z]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_SEGMENT = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_NAME = r"[A-Za-z][A-Za-z0-9]{0,62}"
_COLLECTION = re.compile(rf"{_FIRST}(\.{_SEGMENT})+\.{_NAME}|{_FIRST}\.({_SEGMENT}\.)*")
_MAX_NSID = 317
_SCHEMA = re.compile(r"[A-Za-z_]{1,63}")
_TOKEN = re.compile(r"[!-~]{1,1000}")
_GROUP = re.compile(r"[A-Za-z0-9_.:-]{1,100}")
_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}
_DEFAULTS = {item.name: item.default for item in fields(Settings)}
_NEVER_EMPTY = {"relay_hosts", "collections", "expected_roles"}


def parse(name: str, info: SettingInfo, raw: object) -> Any:
    """Return the value of a setting from text or from TOML.

    Raises ValueError with the allowed values, worded for the operator.
    """
    if name in _SPECIAL:
        return _SPECIAL[name](raw)
    default = _DEFAULTS[name]
    if isinstance(default, tuple):
        return _list(name, raw)
    if isinstance(default, bool):
        return _boolean(raw)
    if isinstance(default, int):
        return _integer(raw, info)
    text = _text(raw)
    if info.choices and text not in info.choices:
        raise ValueError(f"allowed are {', '.join(info.choices)}")
    return text


def _text(raw: object) -> str:
    if not isinstance(raw, str) or not raw.strip():
        raise ValueError("allowed is a text that is not empty")
    if not raw.isprintable():
        raise ValueError("allowed is a text without control characters")
    return raw.strip()


def _boolean(raw: object) -> bool:
    if isinstance(raw, bool):
        return raw
    text = str(raw).strip().lower()
    if text in _TRUE | _FALSE:
        return text in _TRUE
    raise ValueError("allowed are true and false")


def _integer(raw: object, info: SettingInfo) -> int:
    low = 0 if info.minimum is None else info.minimum
    bounds = f"{low} to {info.maximum}" if info.maximum is not None else f"{low} or more"
    allowed = f"allowed is a whole number, {bounds}{f' {info.unit}' if info.unit else ''}"
    if isinstance(raw, bool) or not re.fullmatch(r"[+-]?[0-9]{1,15}", str(raw).strip()):
        raise ValueError(allowed)
    value = int(str(raw))
    if value < low or (info.maximum is not None and value > info.maximum):
        raise ValueError(allowed)
    return value


def _list(name: str, raw: object) -> tuple[str, ...]:
    if isinstance(raw, str):
        raw = (raw.replace(" ", ",") if name == "no_proxy" else raw).split(",")
    if not isinstance(raw, list) or not all(isinstance(item, str) for item in raw):
        raise ValueError("allowed is a list of texts, or one text with commas")
    items = [item.strip() for item in raw if item.strip()]
    if name == "no_proxy":  # of any form: it is often set for other programs, too
        return tuple(dict.fromkeys(items))
    check = {"collections": _collection, "expected_roles": _role}.get(name, endpoint)
    checked = tuple(check(item) for item in items)
    repeated = {item for item in checked if checked.count(item) > 1}
    if repeated:
        raise ValueError(f"{min(repeated)} is listed twice")
    if name in _NEVER_EMPTY and not checked:
        raise ValueError("at least one is needed")
    return checked


def _role(text: str) -> str:
    if text not in ROLE_NAMES:
        raise ValueError(f"{shortened(text)}: allowed are {', '.join(ROLE_NAMES)}")
    return text


def _collection(text: str) -> str:
    if not _COLLECTION.fullmatch(text) or len(text) > _MAX_NSID:
        allowed = "a collection (app.bsky.feed.post), or a prefix that ends in a dot (app.bsky.)"
        raise ValueError(f"{shortened(text)}: allowed is {allowed}")
    return text


def _text_that(check: Callable[[str], str]) -> Callable[[object], str]:
    return lambda raw: check(_text(raw))


def _directory(raw: object) -> Path:
    try:
        return Path(_text(raw)).expanduser()
    except RuntimeError:  # ~name of an account that does not exist
        raise ValueError("allowed is a directory; its ~ is nobody's home") from None


def _absolute(raw: object) -> Path:
    path = Path(_text(raw))
    if not path.is_absolute():
        raise ValueError("allowed is an absolute path, such as /usr/local/bin/rsky-pipeline")
    return path


def _initial_cursor(raw: object) -> str | int:
    text = str(raw).strip()
    if text in {"live", "oldest"}:
        return text
    if not isinstance(raw, bool) and re.fullmatch(r"[0-9]{1,15}", text):
        return int(text)
    raise ValueError("allowed are live, oldest, or a sequence number")


def _schema(raw: object) -> str:
    text = _text(raw)
    if not _SCHEMA.fullmatch(text) or text.lower() == "rsky_pipeline":
        raise ValueError("allowed are letters and underscores, and not rsky_pipeline")
    return text


def _group(raw: object) -> str:
    text = _text(raw)
    if not _GROUP.fullmatch(text):
        raise ValueError("allowed are letters, digits and _ . : - (up to 100)")
    return text


def endpoint(text: str) -> str:
    """Return a relay, labeler or directory as given, without a slash at its end.

    Raises ValueError, for people, unless it is a host, host:port, or URL without a path.
    """
    parse_endpoint(text)
    return text.strip().rstrip("/")


def proxy_url(text: str) -> str:
    """Return the URL of a proxy; raises ValueError without repeating it."""
    parse_proxy(text)
    return text


def token(text: str) -> str:
    """Return a token that a header can carry; raises ValueError without repeating it."""
    if not _TOKEN.fullmatch(text):
        raise ValueError("allowed are ASCII letters, digits and signs without blanks")
    return text


def bind_address(text: str) -> str:
    """Return an address that a server can listen on."""
    if normal_host(text) is None:
        raise ValueError("allowed is an IP address or a host name of this machine, without a port")
    return text


_SPECIAL: dict[str, Callable[[object], Any]] = {
    "redis_url": _text_that(redis_url),
    "database_url": _text_that(database_url),
    "http_proxy": _text_that(proxy_url),
    "plc_url": _text_that(endpoint),
    "handle_resolver_url": _text_that(endpoint),
    "bsync_url": _text_that(endpoint),
    "bsync_key": _text_that(token),
    "metrics_host": _text_that(bind_address),
    "seen_host": _text_that(bind_address),
    "seen_token": _text_that(token),
    "data_dir": _directory,
    "run_dir": _directory,
    "binary_path": _absolute,
    "initial_cursor": _initial_cursor,
    "database_schema": _schema,
    "indexer_group": _group,
    "backfiller_group": _group,
}
