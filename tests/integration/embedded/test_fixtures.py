"""The stores that the other tests get are the ones that operators get."""

import psycopg

from tests.stores import redis_client


def test_valkey_is_durable_and_never_evicts(clean_redis: str) -> None:
    with redis_client(clean_redis) as client:
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert client.config_get("appendfsync") == {"appendfsync": "everysec"}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("port") == {"port": "0"}
        assert client.dbsize() == 0
        client.set("left", "behind")


def test_valkey_is_emptied_between_tests(clean_redis: str) -> None:
    with redis_client(clean_redis) as client:
        assert client.dbsize() == 0


def test_postgres_sorts_by_code_point_and_knows_unicode(clean_database: str) -> None:
    with psycopg.connect(clean_database) as connection:
        row = connection.execute(
            "SELECT lower('ÄÉ'), array(SELECT unnest(ARRAY['b','a','B','ä']) ORDER BY 1), "
            "current_setting('server_encoding'), current_setting('synchronous_commit')"
        ).fetchone()
    assert row == ("äé", ["B", "a", "b", "ä"], "UTF8", "on")


def test_postgres_has_trigrams(clean_database: str) -> None:
    with psycopg.connect(clean_database) as connection:
        connection.execute("CREATE EXTENSION pg_trgm")
        row = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
        assert row.fetchone() == (0,)
