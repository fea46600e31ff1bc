"""The parameters: `params.yaml` as frozen models, one class per section.

There are no defaults in code: DVC sees only what is in the file.
"""

from reparam.config.download import DownloadConfig
from reparam.config.evaluate import EvaluateConfig
from reparam.config.export import ExportConfig
from reparam.config.load import Config, flatten, load_config, params_hash
from reparam.config.model import ModelConfig
from reparam.config.objective import ObjectiveConfig
from reparam.config.preprocess import PreprocessConfig
from reparam.config.report import ReportConfig
from reparam.config.section import Section
from reparam.config.train import TrainConfig

__all__ = [
    "Config",
    "DownloadConfig",
    "EvaluateConfig",
    "ExportConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "PreprocessConfig",
    "ReportConfig",
    "Section",
    "TrainConfig",
    "flatten",
    "load_config",
    "params_hash",
]
