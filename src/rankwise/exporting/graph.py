"""An ONNX graph that is written node by node, and its file.

The values of a graph are named, and nodes take and return names::

    graph = Graph()
    y = graph.node("MatMul", "x", graph.constant(weight, "weight"))
    graph.save(folder, inputs=..., outputs=..., properties=...)

Nodes without a domain are operators of ONNX's standard set, version 20, which ONNX Runtime has since 1.17.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankwise.store import files

FLOAT, INT64 = 1, 7
"""Numbers of the element types in ONNX."""
OPSET = 20
"""The oldest version of the operators that has Gelu."""
IR_VERSION = 9
"""The version of the file format that came with it, which older readers know."""
MODEL = "model.onnx"
WEIGHTS = "model.onnx.data"
"""File of the tensors of a model that is too large for one file."""
LARGEST = (1 << 31) - (1 << 24)
"""Bytes of tensors in one file: protobuf's limit of 2 GiB, less some room for the nodes."""
LEAST_OUTSIDE = 1024
"""Bytes of the smallest tensor in a file of its own; ONNX Runtime reads shapes from the model's file only."""


class Graph:
    """Nodes and constants, in the order in which they are added."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: dict[str, NDArray[Any]] = {}
        self._small: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def node(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node with one output, and return the output's name, which may be given."""
        name = output or f"{kind}_{len(self._nodes)}"
        return self._add(kind, name, inputs, (name,), attributes)[0]

    def nodes(self, kind: str, outputs: int, *inputs: str, **attributes: Any) -> tuple[str, ...]:
        """Add a node, and return the names of its outputs."""
        name = f"{kind}_{len(self._nodes)}"
        return self._add(kind, name, inputs, tuple(f"{name}.{i}" for i in range(outputs)), attributes)

    def _add(
        self,
        kind: str,
        name: str,
        inputs: Sequence[str],
        outputs: tuple[str, ...],
        attributes: Mapping[str, Any],
    ) -> tuple[str, ...]:
        from onnx import helper

        self._nodes.append(helper.make_node(kind, inputs, outputs, name=name, **attributes))
        return outputs

    def constant(self, value: NDArray[Any], name: str) -> str:
        """Add a tensor under a name of its own."""
        self._constants[name] = np.ascontiguousarray(value)
        return name

    def whole(self, *numbers: int) -> str:
        """A tensor (numbers,) int64; equal ones are stored once."""
        return self._shared(np.array(numbers, dtype=np.int64))

    def scalar(self, number: float) -> str:
        """A float32 scalar, or an int64 scalar for a whole number; equal ones are stored once."""
        return self._shared(np.array(number, dtype=np.int64 if isinstance(number, int) else np.float32))

    def _shared(self, value: NDArray[Any]) -> str:
        key = (str(value.dtype), value.shape, value.tobytes())
        if key not in self._small:
            self._small[key] = self.constant(value, f"constant_{len(self._small)}")
        return self._small[key]

    def save(
        self,
        folder: Path,
        inputs: Mapping[str, Sequence[str | int]],
        outputs: Mapping[str, Sequence[str | int]],
        properties: Mapping[str, str],
    ) -> Path:
        """Write the graph as model.onnx, and the tensors beside it if they are larger than 2 GB.

        Args:
            folder: an existing folder.
            inputs: name -> shape of each input, int64; the name of a dimension stands for any size.
            outputs: name -> shape of each output, float32.
            properties: the model's metadata.

        Returns:
            The file of the model.

        Raises:
            ResourceError: the disk is full.
        """
        from onnx import TensorProto, helper

        import rankwise

        graph = helper.make_graph(
            self._nodes,
            "classifier",
            [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in inputs.items()],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                for name, shape in outputs.items()
            ],
            self._stored(folder),
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(name, version) for name, version in self._domains().items()],
            ir_version=IR_VERSION,
            producer_name="rankwise",
            producer_version=str(rankwise.__version__),
        )
        helper.set_model_props(model, dict(properties))
        files.write_bytes(folder / MODEL, model.SerializeToString())
        return folder / MODEL

    def _domains(self) -> dict[str, int]:
        """Domain of operators -> version; the standard set has no name."""
        return {"": OPSET} | {node.domain: 1 for node in self._nodes if node.domain}

    def _stored(self, folder: Path) -> list[Any]:
        """The constants as ONNX tensors. If they are too large for one file, another one is written."""
        from onnx import numpy_helper

        sizes = {name: value.nbytes for name, value in self._constants.items()}
        if sum(sizes.values()) <= LARGEST:
            return [numpy_helper.from_array(value, name) for name, value in self._constants.items()]
        found = []
        with files.writing(folder / WEIGHTS, binary=True) as file:
            for name, value in self._constants.items():
                if sizes[name] < LEAST_OUTSIDE:
                    found.append(numpy_helper.from_array(value, name))
                else:
                    found.append(_outside(name, value, file.tell()))
                    file.write(value.data)
        return found


def _outside(name: str, value: NDArray[Any], offset: int) -> Any:
    """A tensor whose values are in the file of the weights."""
    from onnx import TensorProto, helper

    proto = TensorProto(
        name=name,
        dims=value.shape,
        data_type=helper.np_dtype_to_tensor_dtype(value.dtype),
        data_location=TensorProto.EXTERNAL,
    )
    for key, entry in (("location", WEIGHTS), ("offset", offset), ("length", value.nbytes)):
        proto.external_data.add(key=key, value=str(entry))
    return proto
