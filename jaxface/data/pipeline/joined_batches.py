"""Batches of several sources at once: one of each in every step.

Methods: intern
"""

from collections.abc import Iterator, Mapping
from typing import Any

from jaxface.data.pipeline.batches import Batch, Batches
from jaxface.errors import UserError


class JoinedBatches(Iterator[Batch]):
    """One batch of each of several streams, as one flat dict with names `stream/field`; its position is that of all.

    Args:
      streams: name -> batches.

    Raises:
      UserError: no stream.
    """

    def __init__(self, streams: Mapping[str, Batches]):
        if not streams:
            raise UserError("sources: needs at least one, got none")
        self._streams = dict(streams)

    def __iter__(self) -> "JoinedBatches":
        return self

    def __next__(self) -> Batch:
        batches = {name: next(stream) for name, stream in self._streams.items()}
        return {f"{name}/{field}": value for name, batch in batches.items() for field, value in batch.items()}

    def get_state(self) -> dict[str, Any]:
        """The positions of all streams, for JSON."""
        return {name: stream.get_state() for name, stream in self._streams.items()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to the positions of all streams.

        Raises:
          UserError: positions of other streams, or one that does not belong to its stream.
        """
        if not isinstance(state, Mapping) or state.keys() != self._streams.keys():
            saved = ", ".join(state) if isinstance(state, Mapping) else state
            raise UserError(
                f"sources: the saved data position is of {saved}, this run has {', '.join(self._streams)}"
            )
        for name, stream in self._streams.items():
            stream.set_state(state[name])

    def close(self) -> None:
        """Stops what works ahead."""
        for stream in self._streams.values():
            stream.close()


def stream_batch(batch: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The batch of one stream.

    Example:
      >>> stream_batch({"a/image": 1, "b/image": 2}, "b")
      {'image': 2}
    """
    return {
        field.removeprefix(f"{name}/"): value
        for field, value in batch.items()
        if field.startswith(f"{name}/")
    }
