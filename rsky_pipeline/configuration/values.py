"""Turning the text of a setting into its value; each refusal says what is allowed."""

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rsky_pipeline.configuration.settings import SettingInfo, Settings

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]")
_COLLECTION = re.compile(r"[A-Za-z][A-Za-z0-9-]*(\.[A-Za-z0-9-]+)+\.?")
_SCHEMA = re.compile(r"[A-Za-z_]+")
_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}
_DEFAULTS = {item.name: item.default for item in fields(Settings)}


def parse(name: str, info: SettingInfo, raw: object) -> Any:
    """Return the value of a setting from text or from TOML.

    Raises ValueError with what is allowed, for people.
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
    if isinstance(raw, bool) or not re.fullmatch(r"[+-]?\d{1,18}", str(raw).strip()):
        raise ValueError(allowed)
    value = int(str(raw))
    if value < low or (info.maximum is not None and value > info.maximum):
        raise ValueError(allowed)
    return value


def _list(name: str, raw: object) -> tuple[str, ...]:
    if isinstance(raw, str):
        raw = raw.split(",")
    if not isinstance(raw, list) or not all(isinstance(item, str) for item in raw):
        raise ValueError("allowed is a list of texts, or one text with commas")
    items = [item.strip() for item in raw if item.strip()]
    check = _collection if name == "collections" else endpoint
    checked = tuple(check(item) for item in items)
    repeated = {item for item in checked if checked.count(item) > 1}
    if repeated:
        raise ValueError(f"{min(repeated)} is listed twice")
    if name in {"relay_hosts", "collections"} and not checked:
        raise ValueError("at least one is needed")
    return checked


def endpoint(text: str) -> str:
    """Check a host, or a URL with a scheme, as relays, labelers and directories are given."""
    allowed = "allowed is a host or a URL (ws://, wss://, http://, https://) without a path"
    scheme, separator, rest = text.rpartition("://")
    if separator and scheme.lower() not in {"ws", "wss", "http", "https"}:
        raise ValueError(f"{text}: {allowed}")
    try:
        parts = urlsplit(f"//{rest}")
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{text}: the port must be 1 to 65535") from error
    host = parts.netloc.rpartition(":")[0] if port is not None else parts.netloc
    if "@" in rest or parts.path.strip("/") or parts.query or port == 0:
        raise ValueError(f"{text}: {allowed}")
    if not _HOST.fullmatch(host):
        raise ValueError(f"{text}: {allowed}")
    return text.rstrip("/")


def _collection(text: str) -> str:
    if not _COLLECTION.fullmatch(text):
        raise ValueError(
            f"{text}: allowed is a collection (app.bsky.feed.post) or a prefix that ends in a dot"
        )
    return text


def _url(schemes: tuple[str, ...]) -> Callable[[object], str | None]:
    def read(raw: object) -> str | None:
        text = _text(raw)
        try:
            parts = urlsplit(text)
            _ = parts.port
        except ValueError as error:
            raise ValueError("it is not a URL") from error
        if parts.scheme not in schemes:
            # The value itself may hold a password, so it is not repeated here.
            raise ValueError(f"allowed is a URL that starts with {', '.join(schemes)}://")
        return text

    return read


def _directory(raw: object) -> Path:
    return Path(_text(raw)).expanduser()


def _initial_cursor(raw: object) -> str | int:
    text = str(raw).strip()
    if text in {"live", "oldest"}:
        return text
    if not isinstance(raw, bool) and re.fullmatch(r"\d{1,16}", text):
        return int(text)
    raise ValueError("allowed are live, oldest, or a sequence number")


def _schema(raw: object) -> str:
    text = _text(raw)
    if not _SCHEMA.fullmatch(text) or len(text) > 63 or text == "rsky_pipeline":
        raise ValueError("allowed are letters and underscores, and not rsky_pipeline")
    return text


_SPECIAL: dict[str, Callable[[object], Any]] = {
    "redis_url": _url(("redis", "rediss", "unix")),
    "database_url": _url(("postgresql", "postgres")),
    "plc_url": lambda raw: endpoint(_text(raw)),
    "data_dir": _directory,
    "run_dir": _directory,
    "initial_cursor": _initial_cursor,
    "database_schema": _schema,
}
