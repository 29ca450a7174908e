"""Facts about a network that its graphs carry, so that who serves them without a bundle can tell what they take and give."""

from __future__ import annotations

from onnx import ModelProto, helper

from ...models.registry import LoadedModel

__all__ = ["add_metadata"]


def add_metadata(model: ModelProto, loaded: LoadedModel) -> None:
    """Write ONNX metadata: "arch", "scale", "colour", "value_range", and "licence" where the checkpoint's is known.

    OpenVINO keeps it when it reads the graph, and its IR has it in `rt_info` under "framework".
    """
    facts = {
        "arch": loaded.arch,
        "scale": str(loaded.network.scale),
        "colour": "RGB",
        "value_range": "0 to 1 in float32, 0 to 255 in uint8",
    }
    if licence := loaded.notes.get("licence"):
        facts["licence"] = licence
    helper.set_model_props(model, facts)
