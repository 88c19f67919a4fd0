"""The URLs of the stores: what is read from them, and which options are refused by name."""

from collections.abc import Callable

import pytest
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

from rsky_pipeline.configuration.redaction import redacted
from rsky_pipeline.configuration.store_urls import (
    LIBPQ_OPTIONS,
    RedisAddress,
    RedisLogin,
    database_url,
    parse_redis_url,
    redis_url,
    search_path_of,
)


@pytest.mark.parametrize(
    "text",
    ["redis://localhost:6379", "rediss://user:pw@h:1/0", "unix:///run/valkey.sock", "redis:///3",
     "unix://user:pw@/run/valkey.sock?db=1"],
)  # fmt: skip
def test_redis_urls(text: str) -> None:
    assert redis_url(text) == text


@pytest.mark.parametrize(
    "text",
    ["http://h", "redis:h", "redis://h:x", "redis://h/name", "unix://", "unix://host/x", "h:1"],
)
def test_wrong_redis_urls(text: str) -> None:
    with pytest.raises(ValueError, match=r"allowed|port"):
        redis_url(text)


@pytest.mark.parametrize(
    "text",
    ["postgresql://localhost/bsky", "postgres://u:p@h:5432/d", "postgresql:///d?host=/run/postgresql",
     "postgresql://h1:5432,h2:5433/d?target_session_attrs=read-write"],
)  # fmt: skip
def test_database_urls(text: str) -> None:
    assert database_url(text) == text


@pytest.mark.parametrize(
    "text", ["mysql://h/d", "postgresql:h", "postgresql://h:99999/d", "host=h"]
)
def test_wrong_database_urls(text: str) -> None:
    with pytest.raises(ValueError, match=r"allowed|port"):
        database_url(text)


@pytest.mark.parametrize(
    ("read", "url"),
    [(redis_url, "redis://u:{}@h:6379/0"), (database_url, "postgresql://u:{}@h/d?sslmode=require"),
     (database_url, "postgresql://u:{}@h1,h2/d"), (redis_url, "rediss://:{}@h")],
)  # fmt: skip
@pytest.mark.parametrize(
    "password",
    ["a/b", "a?b", "a#b", "1/b", "/x", "a/b@c", "a?b/c#d", "65000/x", "a/b?c=d", "x?a=b"],
)
def test_a_password_that_is_not_encoded_is_named_as_such(
    read: Callable[[str], str], url: str, password: str
) -> None:
    """The rest of the URL is read as another part of it, and the blame was on that."""
    with pytest.raises(ValueError, match="is not percent-encoded") as error:
        read(url.format(password))
    assert password not in str(error.value)


@pytest.mark.parametrize("password", ["a@b", "a%b", "100%", "a%zz", "a b"])
def test_a_password_that_libpq_cannot_read_is_refused_before_the_start(password: str) -> None:
    with pytest.raises(ValueError, match="is not percent-encoded"):
        database_url(f"postgresql://u:{password}@h/d")


@pytest.mark.parametrize(
    "text",
    ["postgresql://u:a%2Fb%3Fc%23d%40e%25f%20g@h/d", "postgresql:///d?user=a@b&password=x@y",
     "postgresql://h/d?user=x@y", "postgresql://h:1,[::1]:2/d?user=x@y", "postgresql://u:a:b[c@h/d",
     "postgresql://u@/d?host=/run/postgresql", "postgresql://u:$&'ß@h/d"],
)  # fmt: skip
def test_other_passwords_are_read(text: str) -> None:
    assert database_url(text) == text
    conninfo_to_dict(text)


def test_the_search_path_of_a_url() -> None:
    url = "postgres://h/d?sslmode=require&options=-c%20search_path%3Dappview,public"
    assert search_path_of(url) == "appview"
    assert search_path_of("postgres://h/d?options=-c%20work_mem%3D1MB") is None
    assert search_path_of("postgres://h/d") is None


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("redis://", RedisAddress((("localhost", 6379),), RedisLogin())),
        ("redis://u:p%40%2Fq@h:1/3", RedisAddress((("h", 1),), RedisLogin("u", "p@/q"), 3)),
        ("redis://:p@[::1]:7?db=2", RedisAddress((("::1", 7),), RedisLogin(None, "p"), 2)),
        ("redis://h?username=u&password=p", RedisAddress((("h", 6379),), RedisLogin("u", "p"))),
        (
            "rediss://h?ssl_cert_reqs=CERT_NONE",
            RedisAddress(
                (("h", 6379),),
                RedisLogin(tls={"ssl_cert_reqs": "none", "ssl_check_hostname": False}),
            ),
        ),
        (
            "unix://u:p@/run/my%20valkey.sock?db=1",
            RedisAddress((), RedisLogin("u", "p"), 1, "/run/my valkey.sock"),
        ),
        (
            "redis+sentinel://u:p@s1,[::1]:26380,s3:1/main.db_1/2?sentinel_username=a&sentinel_password=b%26",
            RedisAddress(
                (("s1", 26379), ("::1", 26380), ("s3", 1)), RedisLogin("u", "p"), 2, None,
                "main.db_1", RedisLogin("a", "b&"),
            ),
        ),
        (
            "rediss+sentinel://s1/main?ssl_ca_certs=/ca.pem&sentinel_tls=false",
            RedisAddress(
                (("s1", 26379),), RedisLogin(tls={"ssl_ca_certs": "/ca.pem"}), primary_name="main"
            ),
        ),
    ],
)  # fmt: skip
def test_the_parts_of_a_redis_url(text: str, address: RedisAddress) -> None:
    assert parse_redis_url(text) == address


def test_several_servers() -> None:
    found = parse_redis_url("redis://:a%2Cb@s1,[::1]:7000,s3/0")
    assert found.hosts == (("s1", 6379), ("::1", 7000), ("s3", 6379))
    assert (found.login.password, found.primary_name) == ("a,b", None)


def test_sentinels_have_tls_as_the_servers_do() -> None:
    login = parse_redis_url("rediss+sentinel://s1/main?ssl_check_hostname=no").sentinel_login
    assert login.tls == {"ssl_check_hostname": False}
    assert parse_redis_url("redis+sentinel://s1/main?sentinel_tls=yes").sentinel_login.tls == {}


@pytest.mark.parametrize(
    "text",
    ["redis+sentinel://s1", "redis+sentinel://s1/", "redis+sentinel:///main", "redis-sentinel://s1/m",
     "redis+sentinel://s1,,s2/main", "redis+sentinel://s1:x/main", "redis+sentinel://s1/main/x",
     "redis+sentinel://s1/ma in", "redis://s1:x,s2/0"],
)  # fmt: skip
def test_wrong_sentinel_urls(text: str) -> None:
    with pytest.raises(ValueError, match=r"allowed|port"):
        redis_url(text)


@pytest.mark.parametrize(
    ("option", "remedy"),
    [
        ("protocol=3", "remove it"),
        ("decode_responses=true", "remove it"),
        ("socket_timeout=1", "remove it"),
        ("retry_on_timeout=true", "remove it"),
        ("max_connections=1", "remove it"),
        ("health_check_interval=1", "remove it"),
        ("client_name=x", "remove it"),
        ("encoding=latin-1", "remove it"),
        ("family=6", "remove it"),
        ("ssl=true", "rediss://"),
        ("ssl_ca_certs=/x", "rediss://"),
        ("skip_verify=true", "ssl_cert_reqs=none"),
        ("keyPrefix=x", "database"),
        ("master_name=x", r"redis\+sentinel"),
        ("sentinel_password=x", r"redis\+sentinel"),
        ("ssl_cert_req=none", "ssl_cert_reqs"),
        ("nonsense=1", "none of this name"),
    ],
)
def test_an_option_of_redis_is_refused_by_name(option: str, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy) as error:
        redis_url(f"redis://:geheim@h/0?{option}")
    assert option.partition("=")[0] in str(error.value)
    assert "geheim" not in str(error.value)


@pytest.mark.parametrize(
    ("option", "remedy"),
    [
        ("schema=bsky", "database_schema"),
        ("currentSchema=bsky", "database_schema"),
        ("pgbouncer=true", "pooler"),
        ("prepareThreshold=0", "pooler"),
        ("connection_limit=5", "remove it"),
        ("sslmode=no-verify", "sslmode=require"),
        ("sslmode=verify", "verify-full"),
        ("ssl=true", "sslmode=require"),
        ("sslaccept=strict", "sslrootcert"),
        ("client_encoding=latin1", "remove it"),
        ("application_name=x", "remove it"),
        ("replication=true", "remove it"),
        ("target_session_attrs=any", "read-write"),
        ("target_session_attrs=standby", "read-write"),
        ("connect_timeout=0", "whole seconds"),
        ("options=-c%20DateStyle%3DSQL", "datestyle"),
        ("options=--statement_timeout%3D0", "statement_timeout"),
        ("ssl_mode=require", "sslmode"),
        ("nonsense=1", "none of this name"),
    ],
)
def test_an_option_of_postgresql_is_refused_by_name(option: str, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy) as error:
        database_url(f"postgresql://u:geheim@h/d?{option}")
    assert option.partition("=")[0] in str(error.value)
    assert "geheim" not in str(error.value)


@pytest.mark.parametrize(
    "option",
    ["sslmode=verify-full&sslrootcert=/ca.pem", "channel_binding=require", "keepalives_idle=5",
     "target_session_attrs=primary", "options=endpoint%3Dep-cool-name", "client_encoding=UTF-8",
     "options=-c%20search_path%3Dbsky%20-c%20work_mem%3D1MB", "connect_timeout=3", "host=/run/p",
     "load_balance_hosts=random"],
)  # fmt: skip
def test_an_option_of_the_operator_is_accepted(option: str) -> None:
    text = f"postgresql://h/d?{option}"
    assert database_url(text) == text


def test_every_option_of_the_library_is_known() -> None:
    assert {item.keyword.decode() for item in pq.Conninfo.get_defaults()} <= LIBPQ_OPTIONS


def test_what_is_accepted_the_library_reads() -> None:
    url = "postgresql://u@h1:1,[::1]:2,h3/d?target_session_attrs=read-write"
    assert conninfo_to_dict(database_url(url))["host"] == "h1,::1,h3"


def test_no_part_of_a_password_is_shown_as_an_option() -> None:
    with pytest.raises(ValueError, match="odd name") as error:
        database_url("postgresql://u:p@h/d?x=1&ge!heim=x".replace("x=1&", ""))
    assert "heim" not in str(error.value)


def test_the_passwords_of_sentinels_are_hidden() -> None:
    url = "redis+sentinel://u:geheim@s1:1,s2:2/main?sentinel_username=a&sentinel_password=geheim"
    assert "geheim" not in redacted(url)
