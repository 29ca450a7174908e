"""A worker that one file kills, whenever it has it."""

from __future__ import annotations

import json
import os
from typing import Any

from rdsr.runtime.cluster.ray_job import ClusterJob

__all__ = ["Poisoned"]


class Poisoned:
    """Does nothing with other files."""

    def __init__(self, job: ClusterJob) -> None: ...

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        if row["input"] == "poison":
            os._exit(1)
        return {"outcome": json.dumps({"input": row["input"], "output": row["output"]})}
