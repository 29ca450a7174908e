"""Bodies of requests and answers, for the OpenAPI page."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["InferenceRequest", "Problem", "problems"]


class Problem(BaseModel):
    """What went wrong."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"error": "the body is no picture of a known format"}]})
    error: str = Field(description="One sentence.")


class _Tensor(BaseModel):
    name: str = Field(examples=["image"])
    datatype: str = Field(examples=["UINT8"], description="UINT8, UINT16 or FP32.")
    shape: list[int] = Field(examples=[[1, 1, 2, 3]], description="N, H, W, 3.")
    parameters: dict[str, Any] | None = None
    data: list[Any] | None = Field(None, examples=[[0, 0, 0, 255, 255, 255]], description="Flat or nested numbers.")


class _Wanted(BaseModel):
    name: str = Field(examples=["upscaled"])
    parameters: dict[str, Any] | None = None


class InferenceRequest(BaseModel):
    """A request of the Open Inference Protocol v2."""

    id: str | None = None
    parameters: dict[str, Any] | None = None
    inputs: list[_Tensor]
    outputs: list[_Wanted] | None = None


def problems(texts: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    """Status → description, as FastAPI's `responses`."""
    return {status: {"model": Problem, "description": text} for status, text in texts.items()}
