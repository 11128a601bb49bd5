"""What a Triton server has answered."""

from __future__ import annotations

import json
import urllib.request

from deploy.local.triton_server import TritonServer


def answered(server: TritonServer) -> dict[tuple[str, str], int]:
    """Requests that each version of each model has answered, of those that have answered any.

    Triton counts an answer after it has sent it, and a batch of a warm-up by its objects.
    """
    with urllib.request.urlopen(f"{server.http_url}/v2/models/stats") as response:
        stats = json.load(response)["model_stats"]
    counts = {(model["name"], model["version"]): model["inference_stats"]["success"]["count"] for model in stats}
    return {model: count for model, count in counts.items() if count}
