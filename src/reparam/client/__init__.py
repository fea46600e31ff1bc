"""Run an exported model with numpy and onnxruntime alone: no torch, nothing else of ours."""

from reparam.client.client import Client

__all__ = ["Client"]
