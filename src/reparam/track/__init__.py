"""Everything that speaks to MLflow.

A stage logs through a `Tracker`. The calls go to another process, the recorder, because to load MLflow takes seconds.
Tracking never stops a stage that has begun: what cannot be delivered is kept in `.tracking/`, and `reparam replay`
delivers it later.
"""

from reparam.track.delivery import replay
from reparam.track.registry import fetch_version, registered_name
from reparam.track.run import Run
from reparam.track.runs import DATA_TAG, EXPERIMENT_TAG, PARAMS_TAG, STAGE_TAG, WEIGHTS_TAG
from reparam.track.store import OFF, Store, address, connect_to_read
from reparam.track.tracker import Tracker, connect

__all__ = [
    "DATA_TAG",
    "EXPERIMENT_TAG",
    "OFF",
    "PARAMS_TAG",
    "STAGE_TAG",
    "WEIGHTS_TAG",
    "Run",
    "Store",
    "Tracker",
    "address",
    "connect",
    "connect_to_read",
    "fetch_version",
    "registered_name",
    "replay",
]
