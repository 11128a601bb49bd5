"""What the settings say of Redis arrives at the client that is made from the address."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from broker.config import RedisSettings
from broker.redis_client import RedisConnection, split_address


def test_a_single_redis_keeps_its_url_as_it_is() -> None:
    url = "rediss://name:pass%2Fword@host:6380/2?client_name=x&health_check_interval=3"
    address = RedisSettings.model_validate({"url": url}).address()
    assert split_address(address) == (url, False, [])


def test_a_cluster_with_login_certificates_and_further_nodes() -> None:
    settings = RedisSettings.model_validate(
        {
            "url": "rediss://a:7001/0?health_check_interval=3",
            "username": "trifid",
            "password": "p@ss/word",
            "ca_location": "/ca.pem",
            "cluster": True,
            "nodes": ["b:7002", "[::1]:7003"],
        }
    )
    url, cluster, nodes = split_address(settings.address())
    assert url == "rediss://trifid:p%40ss%2Fword@a:7001/0?health_check_interval=3&ssl_ca_certs=%2Fca.pem"
    assert (cluster, nodes) == (True, [("b", 7002), ("::1", 7003)])
    assert RedisConnection(settings.address()).is_cluster


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"nodes": ["b:7002"]}, "nodes given, but cluster is false"),
        ({"cluster": True, "nodes": ["b"]}, "no host:port"),
        ({"cluster": True, "nodes": ["redis://b:1"]}, "no host:port"),
        ({"cluster": True, "url": "redis://a:1/3"}, "no database but 0"),
        ({"cluster": True, "url": "unix:///tmp/redis.sock"}, "no unix:// address"),
        ({"wait_replicas": -1}, "greater than or equal to 0"),
    ],
)
def test_what_cannot_be_meant(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        RedisSettings.model_validate(given)
