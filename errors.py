"""The root of all errors that the project raises on purpose, and how their sentences stay short."""

from __future__ import annotations

__all__ = ["OutputError", "RdsrError", "shortened"]


class RdsrError(Exception):
    """Base of every error that the project raises on purpose. Each message is one sentence.

    - `RdsrError`
        - `OutputError`: a file cannot be written
        - `BundleError`: a bundle is missing, damaged or tampered with, or lacks a requested variant
        - `PictureError`: a picture cannot be read, or is of a kind that cannot be upscaled
        - `EngineError`: an inference engine is not installed, cannot load a graph, or failed
        - `CancelledError`: the caller stopped the call
        - `OptionError` (also a `ValueError`): an option that does not exist, or does not go together with others
            - `MemoryLimitError`: a picture does not fit the memory limit
        - `CheckpointError`: a checkpoint cannot be read, or a tensor in it is missing or misshapen
            - `UnsupportedModelError`: no known architecture matches the checkpoint's keys
        - `TrainingError`: configuration, data or run folder do not allow training
        - `ExportError`: an export cannot be done
            - `OutputExistsError`: something exists at the output already
            - `ProofError`: the result does not equal the torch model
        - `BenchmarkError`: a data set or a model cannot be measured
            - `CandidateError`: one model among several cannot be measured
    """

    results: tuple[object, ...] = ()
    """What was done before it: `Upscaler.frames` has written the frames before the one that failed."""


class OutputError(RdsrError):
    """A file cannot be written where it was asked for."""


def shortened(text: object, most: int = 400) -> str:
    """The text without its middle if it is longer than `most` characters: names in crafted files have any length."""
    words = str(text)
    return words if len(words) <= most else f"{words[: most // 2]} … {words[-most // 2 :]}"
