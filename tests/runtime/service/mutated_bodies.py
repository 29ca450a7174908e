"""Bodies that a service must refuse or serve: pictures and tensors with bytes changed, cut, or made up."""

from __future__ import annotations

import copy
import json
from collections import Counter
from typing import Any

import httpx
import numpy as np

from rdsr.tests.fuzz import pictures

__all__ = ["send_mutated"]

_HEADER = "Inference-Header-Content-Length"


def _tensor(rng: np.random.Generator) -> tuple[bytes, dict[str, str]]:
    """A request of the protocol, in JSON or binary, with something changed."""
    height, width = (int(side) for side in rng.integers(1, 12, 2))
    picture = rng.integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    tensor: dict[str, Any] = {"name": "image", "datatype": "UINT8", "shape": list(picture.shape)}
    request: dict[str, Any] = {"inputs": [tensor], "parameters": {"binary_data_output": bool(rng.integers(2))}}
    binary = bool(rng.integers(2))
    if binary:
        tensor["parameters"] = {"binary_data_size": picture.nbytes}
    else:
        tensor["data"] = picture.ravel().tolist()
    strange = [None, -1, 2**40, 1.5, "x", [], {}, [1], True, float("inf"), "\ud800"]
    for _ in range(int(rng.integers(0, 3))):
        target = (request, tensor, request["parameters"])[int(rng.integers(3))]
        if not isinstance(target, dict):  # a mutation before has put something else there
            continue
        key = str(rng.choice([*target, "seed", "id", "outputs", "shape", "data"]))
        target[key] = copy.copy(strange[int(rng.integers(len(strange)))])
    head = json.dumps(request).encode()
    body = bytearray(head + (picture.tobytes() if binary else b""))
    headers = {_HEADER: str(len(head))} if binary else {}
    for _ in range(int(rng.integers(0, 4)) if rng.integers(2) else 0):
        body[int(rng.integers(len(body)))] = int(rng.integers(256))
    if not rng.integers(8):
        del body[int(rng.integers(len(body))) :]
    if not rng.integers(8):
        headers[_HEADER] = str(rng.choice(["0", "-5", "99999999999", "1e3", "7", str(len(head) - 1)]))
    return bytes(body), headers


def send_mutated(client: httpx.Client, count: int, seed: int) -> Counter[int]:
    """Send so many bodies, one after the other. Returns the number of answers by status."""
    rng = np.random.default_rng(seed)
    answers: Counter[int] = Counter()
    for _ in range(count):
        if rng.integers(2):
            _, body = pictures.mutated(rng)
            answer = client.post("/v1/upscale", content=body)
        else:
            body, headers = _tensor(rng)
            answer = client.post("/v2/models/default/infer", content=body, headers=headers)
        answers[answer.status_code] += 1
        if answer.status_code >= 500:
            raise AssertionError(f"{answer.status_code} {answer.text[:300]} for {body[:200]!r}")
    return answers
