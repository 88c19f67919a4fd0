"""Proxies as operators write them, and the hosts that need none."""

from pathlib import Path

import pytest

from rsky_pipeline.configuration.load import load
from rsky_pipeline.configuration.proxy import parse_proxy


@pytest.mark.parametrize(
    ("text", "secure", "authority"),
    [
        ("http://proxy.test:3128", False, "proxy.test:3128"),
        ("http://proxy.test:3128/", False, "proxy.test:3128"),
        ("proxy.test:3128", False, "proxy.test:3128"),
        ("https://proxy.test", True, "proxy.test"),
        ("http://10.0.0.1:8080", False, "10.0.0.1:8080"),
        ("http://[::1]:8080", False, "[::1]:8080"),
    ],
)
def test_urls_of_proxies(text: str, secure: bool, authority: str) -> None:
    proxy = parse_proxy(text)
    assert (proxy.endpoint.secure, proxy.endpoint.authority) == (secure, authority)
    assert proxy.authorization is None


def test_a_user_name_and_password_are_sent_as_they_are_meant() -> None:
    assert parse_proxy("http://Aladdin:open%20sesame@proxy.test:1").authorization == (
        "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
    )
    assert parse_proxy("http://a@proxy.test:1").authorization == "Basic YTo="


@pytest.mark.parametrize(
    "text", ["socks5://proxy.test:1080", "http://proxy.test:99999", "http://", "http://p.test/path",
             "http://user:secret@a..b:1", "http://p.test?x"],
)  # fmt: skip
def test_what_is_no_proxy_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="allowed is") as error:
        parse_proxy(text)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("exempt", "host", "port", "direct"),
    [
        ("", "example.com", 443, False),
        ("", "localhost", 443, True),
        ("", "127.0.0.1", 80, True),
        ("", "127.8.9.1", 80, True),
        ("", "::1", 80, True),
        ("*", "example.com", 443, True),
        ("example.com", "example.com", 443, True),
        ("example.com", "pds.example.com", 443, True),
        (".example.com", "pds.example.com", 443, True),
        ("*.example.com", "pds.example.com", 443, True),
        ("example.com", "badexample.com", 443, False),
        ("EXAMPLE.com", "example.com", 443, True),
        ("example.com:8443", "example.com", 8443, True),
        ("example.com:8443", "example.com", 443, False),
        ("10.0.0.0/8", "10.1.2.3", 443, True),
        ("10.0.0.0/8", "11.1.2.3", 443, False),
        ("10.0.0.1", "10.0.0.1", 443, True),
        ("10.0.0.1:80", "10.0.0.1", 443, False),
        ("fd00::/8", "fd00::1", 443, True),
        ("[fd00::1]:443", "fd00::1", 443, True),
        ("0.0.0.0/0", "example.com", 443, False),
        (".", "example.com", 443, False),
        ("not a form/33", "10.0.0.1", 443, False),
    ],
)
def test_hosts_without_a_proxy(exempt: str, host: str, port: int, direct: bool) -> None:
    proxy = parse_proxy("http://proxy.test:3128", ["other.test", exempt])
    assert proxy.serves(host, port) is not direct


NO_FILE = Path("/dev/null")


def test_the_variables_of_other_programs_are_read() -> None:
    environ = {
        "HTTPS_PROXY": "http://u:p@proxy.test:3128",
        "no_proxy": "a.test, .b.test 10.0.0.0/8",
    }
    settings = load(NO_FILE, environ, {}).settings
    assert settings.no_proxy == ("a.test", ".b.test", "10.0.0.0/8")
    assert settings.proxy is not None
    assert not settings.proxy.serves("x.b.test", 443)
    assert "p@" not in repr(settings)
    assert load(NO_FILE, {}, {}).settings.proxy is None
