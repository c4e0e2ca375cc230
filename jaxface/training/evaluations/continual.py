"""How much of every task a network knows as tasks arrive one after the other.

Methods: lifelong
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxface import losses, metrics
from jaxface.data.pipeline.batches import stack
from jaxface.data.sources.source import Subset
from jaxface.data.sources.tasks import TaskOrdered, exemplar_rows
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.errors import UserError
from jaxface.training import figures
from jaxface.training.evaluations.needs import check_not_empty
from jaxface.training.lifelong import TaskNetwork, row_mean
from jaxface.training.recognition import embed_source, network_variables
from jaxface.training.stages import Figures
from jaxface.training.step import TrainState

SCENARIOS = {
    "task": "the task given",
    "class": "one image among all classes seen",
    "chunk": "the task inferred of a chunk",
    "adapted": "the same after adaptation to that task",
}
"""How the task of a test image is told: name in the metrics -> what it means."""


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """One epoch on the exemplars of a task, before the network is asked for that task's classes.

    Adam with its own state, the slice loss, exemplars in one shuffled order; batch statistics are used as they are.

    Attributes:
      network: the network and the tasks.
      source: training records, classes numbered as they arrive.
      memory: most exemplars in all.
      learning_rate: of Adam.
      batch_size: exemplars at a time.
    """

    network: TaskNetwork
    source: TaskOrdered
    memory: int
    learning_rate: float = 1e-3
    batch_size: int = 64

    @functools.cached_property
    def capacity(self) -> int:
        """Batches of the exemplars of a task when it has most of them, after the second session."""
        seen = min(2, self.network.tasks) * self.network.size
        rows = exemplar_rows(self.source.labels, seen, self.memory)
        return -(-int(np.bincount(self.source.tasks[rows]).max()) // self.batch_size)

    @functools.cached_property
    def _adapt(self):
        """((parameters, extra), task, images, labels [batches, B, …], valid) -> parameters; compiled once."""
        network, optimizer = self.network, optax.adam(self.learning_rate)

        def loss(params, extra, task, images, labels, valid):
            scores = network.model.apply(
                network_variables(params["backbone"], extra), normalize_pixels(images), train=False
            )
            return row_mean(losses.slice_bce_loss(scores, labels, task, size=network.size), valid)

        @jax.jit
        def adapt(arrays, task, images, labels, valid):
            params, extra = arrays

            def descend(carry, batch):
                params, state = carry
                gradients = jax.grad(loss)(params, extra, task, *batch)
                updates, state = optimizer.update(gradients, state, params)
                return optax.apply_updates(params, updates), state

            def visit(carry, batch):
                return jax.lax.cond(batch[2].any(), descend, lambda carry, _: carry, carry, batch), None

            return jax.lax.scan(visit, (params, optimizer.init(params)), (images, labels, valid))[0][0]

        return adapt

    def adapted(self, params, extra: Mapping, session: int, task: int):
        """The parameters for one task after a session."""
        rows = exemplar_rows(self.source.labels, (session + 1) * self.network.size, self.memory)
        rows = np.random.default_rng([session, task]).permutation(rows[self.source.tasks[rows] == task])
        size, count = self.batch_size, self.capacity
        records = stack((self.source[int(i)] for i in np.resize(rows, size * count)), size * count)
        images, labels = (
            records[name].reshape(count, size, *records[name].shape[1:]) for name in ("image", "label")
        )
        valid = (np.arange(size * count) < len(rows)).reshape(count, size)
        return self._adapt((params, extra), jnp.int32(task), images, labels, valid)


class ContinualAccuracy:
    """Accuracy on the test records of every task after a session, in each of the `SCENARIOS`.

        <scenario>/task_<j>               of task j, from 0
        <scenario>/accuracy               of the records of all classes seen
        <scenario>/average, /incremental, /forgetting, /backward_transfer, /learning
                                          ACC, AIA, F, BWT and the mean right after learning (`jaxface.metrics`), of the tasks
                                          seen; where there are two and more
        task/forward_transfer             of the task given, after the last session

    Earlier rows of the matrices come from the metrics of earlier sessions, so that a resumed run has them. The figures are the
    matrices of the scenarios.

    Args:
      network: the network and the tasks.
      source: test records, classes numbered as they arrive.
      session: that was learned, from 0; -1 for the network before the first.
      earlier: metrics of the evaluations of the network before its first session, and of the sessions before.
      chunk: images of a chunk, which are known to be of one task.
      adaptation: to the task of a chunk; None leaves that scenario out, and so does the first session.

    Raises:
      UserError: nothing to evaluate on.
    """

    def __init__(
        self,
        network: TaskNetwork,
        source: TaskOrdered,
        session: int,
        earlier: Sequence[Mapping[str, float]] = (),
        *,
        chunk: int = 20,
        adaptation: Adaptation | None = None,
    ):
        check_not_empty(source)
        missing = sorted(set(range(network.tasks)) - set(source.tasks.tolist()))
        if missing:
            raise UserError(f"data: needs test records of every task, there are none of task {missing[0]}")
        self.network, self.source, self.session, self.earlier = network, source, session, list(earlier)
        self.chunk, self.adaptation = chunk, adaptation
        self.matrices: dict[str, np.ndarray] = {}

    def __call__(self, state: TrainState) -> dict[str, float]:
        size, tasks, source = self.network.size, self.network.tasks, self.source
        params, extra = state.averaged_params, state.extra
        scores = embed_source(self.network.model, params["backbone"], extra, source, flip=False)
        slices = scores.reshape(len(scores), tasks, size)
        inside = slices.argmax(axis=2) + np.arange(tasks) * size  # the best class of each task [N, T]
        rows = np.arange(len(source))
        answers = {"task": inside[rows, source.tasks]}
        if self.session >= 0:
            seen = self.session + 1
            answers["class"] = scores[:, : seen * size].argmax(axis=1)
            # Which task a chunk is of is asked of the tasks seen alone; chunks of others are wrong whatever is said.
            inferred = metrics.infer_chunk_tasks(slices.max(axis=2)[:, :seen], source.tasks, chunk=self.chunk)
            answers["chunk"] = inside[rows, inferred]
            if self.adaptation is not None:
                answers["adapted"] = answers["chunk"].copy()
                for task in range(seen if self.session else 0):
                    asked = np.flatnonzero((inferred == task) & (source.tasks < seen))
                    if asked.size:
                        adapted = self.adaptation.adapted(params, extra, self.session, task)
                        part = embed_source(
                            self.network.model, adapted["backbone"], extra, Subset(source, asked), flip=False
                        )
                        own = part[:, task * size : (task + 1) * size]
                        answers["adapted"][asked] = own.argmax(axis=1) + task * size
        report: dict[str, float] = {}
        for scenario, answer in answers.items():
            report |= self._report(scenario, answer == source.labels)
        return report

    def _report(self, scenario: str, correct: np.ndarray) -> dict[str, float]:
        tasks, seen = self.source.tasks, self.session + 1
        row = [float(correct[tasks == j].mean()) for j in range(self.network.tasks)]
        report = {f"{scenario}/task_{j}": value for j, value in enumerate(row)}
        if not seen:
            return report
        report[f"{scenario}/accuracy"] = float(correct[tasks < seen].mean())
        names = [f"{scenario}/task_{j}" for j in range(self.network.tasks)]
        sessions = [values for values in self.earlier if f"{scenario}/accuracy" in values]
        whole = np.array([[values[name] for name in names] for values in sessions] + [row])
        matrix = self.matrices[scenario] = whole[:, :seen]
        if seen > 1 and len(whole) == seen:
            report |= {
                f"{scenario}/average": metrics.average_accuracy(matrix),
                f"{scenario}/incremental": metrics.average_incremental_accuracy(matrix),
                f"{scenario}/forgetting": metrics.forgetting(matrix),
                f"{scenario}/backward_transfer": metrics.backward_transfer(matrix),
                f"{scenario}/learning": metrics.learning_accuracy(matrix),
            }
            untrained = [values for values in self.earlier if "class/accuracy" not in values]
            if scenario == "task" and seen == self.network.tasks and untrained:
                start = [untrained[0][name] for name in names]
                report["task/forward_transfer"] = metrics.forward_transfer(matrix, start)
        return report

    def figures(self, state: TrainState) -> Figures:
        """The matrices of the session that was evaluated last."""
        return {
            f"accuracy_{scenario}": functools.partial(
                figures.save_accuracy_matrix, matrix, title=f"Accuracy by task: {SCENARIOS[scenario]}"
            )
            for scenario, matrix in self.matrices.items()
        }
