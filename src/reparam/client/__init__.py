"""Run an exported model with numpy and onnxruntime alone: no torch, nothing else of ours."""

from reparam.client.client import Client
from reparam.client.scores import Scores

__all__ = ["Client", "Scores"]
