"""Weights of an ONNX network in half precision."""

from pathlib import Path

import numpy as np

from detkit.errors import UserError

LEAST = 256  # values of a tensor, below which halving it saves nothing


def half_weights(network: bytes, path: str | Path) -> bytes:
    """Return a network whose large weights are float16 and widened when it is loaded: half the bytes, for any program.

    It computes in float32 as before; programs for devices that multiply float16 choose that by themselves. path: of the
    checkpoint, for the UserError of a weight that is beyond half precision.
    """
    import onnx  # pyright: ignore[reportMissingImports]

    model = onnx.load_model_from_string(network)
    widened = []
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < LEAST:
            continue
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not np.isfinite(half).all():
            raise UserError(f"{path}: {tensor.name} has values beyond half precision, whose largest is 65504")
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}.half"))
        widened.append(onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*widened, *model.graph.node]  # in the order in which they are computed
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model.SerializeToString()
