"""ONNX models in int8, by ONNX Runtime's dynamic quantization.

The weight of a linear layer has a scale for each output, and its input is quantized when the model runs.
Embeddings, norms, attention and the score head stay in float32.
"""

from __future__ import annotations

import logging
from pathlib import Path

from rankwise.exporting.graph import MODEL, WEIGHTS


def quantize(source: Path, folder: Path) -> None:
    """Write the int8 version of a model.

    Args:
        source: folder of the model in float32.
        folder: folder for the model in int8.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.getLogger("root")
    quantize_dynamic(
        source / MODEL,
        folder / MODEL,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        use_external_data_format=(source / WEIGHTS).exists(),
        extra_options={"MatMulConstBOnly": True},
    )
