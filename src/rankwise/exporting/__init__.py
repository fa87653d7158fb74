"""Adapters written for other libraries: transformers, ONNX Runtime, PEFT."""
