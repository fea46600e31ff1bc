"""A store that goes away and comes back."""

from typing import Any

from mlflow.exceptions import MlflowException


class Absent:
    """Is in front of a client and refuses what would write, while `away` is true."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.away = False
        self.refused = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)
        if name not in {"log_batch", "log_artifact", "log_inputs", "set_terminated", "create_run", "search_runs"}:
            return method

        def call(*given: Any, **named: Any) -> Any:
            if self.away:
                self.refused += 1
                raise MlflowException("connection refused\nand a long explanation")
            return method(*given, **named)

        return call
