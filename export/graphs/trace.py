"""Trace a module to a clean, checked ONNX graph."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Mapping

import onnx
import torch
from torch import Tensor, nn

from ..errors import ExportError

__all__ = ["OPSET", "trace"]

OPSET = 17


def trace(
    module: nn.Module, inputs: Mapping[str, Tensor], output: str, dynamic: Mapping[str, Mapping[int, str]]
) -> onnx.ModelProto:
    """Trace `module` with example `inputs` to ONNX; `dynamic` names the free axes of inputs and output.

    This uses the TorchScript exporter: the dynamo exporter has exported PixelUnshuffle with the wrong channel order.
    Raises `ExportError` if the tracer or the checker refuses the network.
    """
    buffer = io.BytesIO()
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.onnx._internal")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module.eval(),
                tuple(inputs.values()),
                buffer,  # type: ignore[arg-type]  # the TorchScript exporter writes to file objects
                input_names=list(inputs),
                output_names=[output],
                dynamic_axes={name: dict(axes) for name, axes in dynamic.items()},
                opset_version=OPSET,
                dynamo=False,
            )
        model = onnx.load_from_string(buffer.getvalue())
        _clean(model)
        onnx.checker.check_model(model, full_check=True)
    except (RuntimeError, torch.onnx.errors.OnnxExporterError, onnx.checker.ValidationError) as error:
        raise ExportError(f"{type(module).__name__} cannot be traced to ONNX: {error}") from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    return model


def _clean(model: onnx.ModelProto) -> None:
    """Remove doc strings and metadata: they depend on the exporting machine."""
    model.doc_string = ""
    model.graph.doc_string = ""
    model.graph.name = "rdsr"
    del model.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
