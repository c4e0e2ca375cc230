"""What an evaluation needs of its data is found out from the labels, before anything is computed."""

import contextlib
from collections.abc import Iterator

from jaxface.data.sources.source import Source
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
