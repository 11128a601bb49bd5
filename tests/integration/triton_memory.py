"""What a Triton server has of its clients' memory."""

from __future__ import annotations

import json
import urllib.request

from deploy.local.triton_server import TritonServer


def mapped(server: TritonServer) -> set[str]:
    """Names of the clients' shared memory that the server has mapped."""
    with urllib.request.urlopen(f"{server.http_url}/v2/systemsharedmemory/status") as response:
        return {region["name"] for region in json.load(response)}
