"""Programs that run ONNX files on the CPU, in float32 or what the file has, with as many threads as torch has."""

from io import BytesIO
from typing import Protocol

import torch
from torch import Tensor


class Runtime(Protocol):
    """A network in a program that runs it. name: of the program, with its version."""

    name: str

    def __init__(self, content: bytes) -> None:
        """Get a file's content ready, or raise what the program raises."""

    def __call__(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """Inputs by name -> the outputs in their order."""
        ...


class ONNXRuntime:
    def __init__(self, content: bytes) -> None:
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
    def __init__(self, content: bytes) -> None:
        import openvino  # pyright: ignore[reportMissingImports]

        self.name = f"OpenVINO {openvino.__version__.partition('-')[0]}"
        core = openvino.Core()
        # left to itself it takes bfloat16 where the processor has it, and boxes move
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        self._model = core.compile_model(core.read_model(BytesIO(content)), "CPU", settings)

    def __call__(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = self._model({name: value.contiguous().numpy() for name, value in inputs.items()})
        return tuple(torch.from_numpy(outputs[number]) for number in range(len(self._model.outputs)))


RUNTIMES: dict[str, type[Runtime]] = {"openvino": OpenVINO, "onnxruntime": ONNXRuntime}  # the fastest first
