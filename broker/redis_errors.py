"""What Redis refuses, as errors for the decision that a caller can take, in each package that is a client of Redis."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import redis
from redis.exceptions import ClusterError, MovedError, RedisClusterException

from broker.errors import ConfigurationError, DependencyUnavailableError

# Codes that redis-py has no class for: the disk is full, replicas are missing, a script runs too long.
_PASSING: Final = ("MISCONF", "NOREPLICAS", "BUSY", "CLUSTERDOWN", "TRYAGAIN", "MASTERDOWN")
_NO_CLUSTER: Final = "Cluster mode is not enabled"
_DENIED_IN_SCRIPT: Final = "ACL failure in script"


@contextmanager
def redis_errors(where: str = "") -> Iterator[None]:
    """Raise Redis's errors as ours; ``where`` says how far the work got.

    DependencyUnavailableError where the same call may succeed later, a login that is refused included: passwords
    are changed on one side first. ConfigurationError where the user's ACL forbids it: without that, each alert
    would be taken for the culprit. Others, such as a script's fault, pass.
    """
    end = f" {where}" if where else ""
    try:
        yield
    except redis.AuthenticationError as error:  # a ConnectionError, too
        raise DependencyUnavailableError(f"Redis refuses the login{end}: {error}") from error
    except redis.ConnectionError as error:  # BusyLoadingError as well
        raise DependencyUnavailableError(f"Redis is unavailable{end}: {error}") from error
    except redis.TimeoutError as error:
        raise DependencyUnavailableError(f"Redis does not answer{end}: {error}") from error
    except redis.OutOfMemoryError as error:
        raise DependencyUnavailableError(f"Redis is full (maxmemory){end}: {error}") from error
    except redis.ReadOnlyError as error:
        raise DependencyUnavailableError(f"Redis is read-only{end}: {error}") from error
    except RedisClusterException as error:  # of the client: no node answers, or not all slots have one
        if _NO_CLUSTER in str(error):
            raise ConfigurationError(
                "redis.cluster is true, and the server at redis.url is not in a cluster"
            ) from error
        raise DependencyUnavailableError(f"Redis Cluster is unavailable{end}: {error}") from error
    except MovedError as error:  # a client of a cluster follows it
        raise ConfigurationError(
            f"the Redis at redis.url is a node of a cluster, and redis.cluster is not true: {error}"
        ) from error
    except ClusterError as error:  # CLUSTERDOWN: nodes are unavailable, or a slot has none; or redirected in a circle
        raise DependencyUnavailableError(f"Redis Cluster is unavailable{end}: {error}") from error
    except redis.ResponseError as error:
        if isinstance(error, redis.exceptions.NoPermissionError) or _DENIED_IN_SCRIPT in str(error):
            raise ConfigurationError(
                f"Redis does not allow it{end}: {error}; ACL LOG names the key (docs/security.md)"
            ) from error
        # In a pipeline, redis-py puts the command before the server's words.
        if str(error).rpartition("caused error: ")[2].startswith(_PASSING):
            raise DependencyUnavailableError(f"Redis{end}: {error}") from error
        raise
