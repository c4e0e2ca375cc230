"""What an evaluation needs of its data is found out from the labels, before anything is computed.

Methods: dpm
"""

import contextlib
from collections.abc import Iterator

import numpy as np

from jaxface.data.sources.source import Source
from jaxface.data.specs.base import Split
from jaxface.errors import UserError
from jaxface.metrics.recognition.open_set import check_open_set
from jaxface.metrics.recognition.report import PairChoice, check_verification


@contextlib.contextmanager
def needs_of_data(purpose: str) -> Iterator[None]:
    """A refusal of labels or pairs inside becomes one of the data, with what they are for, such as "to verify"."""
    try:
        yield
    except UserError as error:
        raise UserError(f"data: the records {purpose}: {str(error).partition(': ')[2]}") from None


def check_verifiable(
    source: Source, pairs: PairChoice = None, *, seed: int = 0, identify: bool = False
) -> None:
    """Raises UserError unless the people of a source can be verified, and with `identify` identified in an open set."""
    with needs_of_data("to verify"):
        check_verification(source.labels, pairs, seed=seed)
        if identify:
            check_open_set(source.labels, seed=seed)


def check_not_empty(source: Source) -> None:
    """Raises UserError unless there is a record to evaluate on."""
    if not len(source):
        raise UserError("data: needs at least one record to evaluate on, got none")


def check_spoofing(split: Split) -> None:
    """Refuses data without live faces and attacks in each of its parts, and without a development set to take thresholds on.

    Raises:
      UserError: other data, or a part with one kind alone.
    """
    if split.protocol != "spoofing" or split.development is None:
        raise UserError(
            f"data: needs live faces and attacks with a development set, such as presentations; got {split.name}"
        )
    for purpose, source in (
        ("to train on", split.train),
        ("to take a threshold on", split.development),
        ("to test", split.held_out),
    ):
        check_not_empty(source)
        live = np.asarray(source.labels) == 0
        for kind, there in (("live face", live), ("attack", ~live)):
            if not there.any():
                raise UserError(
                    f"data: needs at least one {kind} {purpose}, got none in {len(live)} presentations"
                )
