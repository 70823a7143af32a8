"""Programs that run ONNX files on the CPU, in float32 or what the file has, with as many threads as torch has."""

from collections.abc import Mapping
from io import BytesIO
from typing import Any, Protocol

import numpy as np
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
    """Networks of images of one size are compiled for each number of images: a tenth to a sixth faster than for any."""

    SIZES = 4  # compiled at most, which is as many times the weights

    def __init__(self, content: bytes) -> None:
        import openvino  # pyright: ignore[reportMissingImports]

        self.name = f"OpenVINO {openvino.__version__.partition('-')[0]}"
        self._tensor = openvino.Tensor
        core = openvino.Core()
        # left to itself it takes bfloat16 where the processor has it, and boxes move
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        self._network = core.read_model(BytesIO(content))
        self._compile = lambda: core.compile_model(self._network, "CPU", settings)
        shapes = [[*one.partial_shape] for one in self._network.inputs]
        # pixels; the number of regions is another at each call
        images = all(one.element_type == openvino.Type.u8 for one in self._network.inputs)
        self._any_count = images and all(
            first.is_dynamic and not any(side.is_dynamic for side in rest) for first, *rest in shapes
        )
        self._compiled: dict[int, Any] = {}  # by number of images; 0 for any
        self._met: set[int] = set()
        if not self._any_count:
            self._compiled[0] = self._compile()

    def __call__(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        inputs = {name: value.contiguous() for name, value in inputs.items()}
        if not self._any_count:
            outputs = self._compiled[0]({name: value.numpy() for name, value in inputs.items()})
            return tuple(torch.from_numpy(value) for value in outputs.to_tuple())
        count = len(next(iter(inputs.values())))
        size = self._size(count, inputs)
        if size > count:  # the last image fills it up
            filled = torch.arange(size).clamp(max=count - 1)
            inputs = {name: value[filled] for name, value in inputs.items()}
        request = self._compiled[size]
        # its own memory for each call's outputs, into which they are computed
        outputs = [np.empty(one.shape, one.element_type.to_dtype()) for one in request.output_tensors]
        for number, output in enumerate(outputs):
            request.set_output_tensor(number, self._tensor(output, shared_memory=True))
        request.infer({name: value.numpy() for name, value in inputs.items()}, share_inputs=True, share_outputs=True)
        return tuple(torch.from_numpy(output)[:count] for output in outputs)

    def _size(self, count: int, inputs: Mapping[str, Tensor]) -> int:
        """Return for how many images the network runs that takes `count`; a larger one where it is a last batch."""
        larger = [size for size in self._compiled if size > count]
        if count in self._compiled:
            return count
        if larger and count not in self._met:
            self._met.add(count)  # the second time it is no last batch
            return min(larger)
        self._network.reshape({name: [*value.shape] for name, value in inputs.items()})
        if len(self._compiled) == self.SIZES:
            del self._compiled[next(iter(self._compiled))]
        self._compiled[count] = self._compile().create_infer_request()
        return count


RUNTIMES: dict[str, type[Runtime]] = {"openvino": OpenVINO, "onnxruntime": ONNXRuntime}  # the fastest first
