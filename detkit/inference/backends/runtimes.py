"""Programs that run ONNX files on the CPU, each with as many threads as torch has."""

from io import BytesIO
from typing import Protocol

import torch
from torch import Tensor


class Runtime(Protocol):
    """A network in a program that runs it. name: of the program, with its version."""

    name: str

    def __init__(self, content: bytes, bf16: bool) -> None:
        """Get a file's content ready, or raise what the program raises. bf16: whether it may compute in bfloat16."""

    def __call__(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """Inputs by name -> the outputs in their order."""
        ...


class ONNXRuntime:
    """Computes in float32."""

    def __init__(self, content: bytes, bf16: bool) -> None:
        import onnxruntime  # pyright: ignore[reportMissingImports]

        self.name = f"ONNX Runtime {onnxruntime.__version__}"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def __call__(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        arrays = {name: value.contiguous().numpy() for name, value in inputs.items()}
        return tuple(map(torch.from_numpy, self._session.run(None, arrays)))


class OpenVINO:
    """Computes in bfloat16 only where that is asked for: left to itself it does where the processor can."""

    def __init__(self, content: bytes, bf16: bool) -> None:
        import openvino  # pyright: ignore[reportMissingImports]

        self.name = f"OpenVINO {openvino.__version__.partition('-')[0]}"
        core, precision = openvino.Core(), "bf16" if bf16 else "f32"
        settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        self._model = core.compile_model(core.read_model(BytesIO(content)), "CPU", settings)

    def __call__(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = self._model({name: value.contiguous().numpy() for name, value in inputs.items()})
        return tuple(torch.from_numpy(outputs[number]) for number in range(len(self._model.outputs)))


RUNTIMES: dict[str, type[Runtime]] = {"openvino": OpenVINO, "onnxruntime": ONNXRuntime}  # the fastest first
