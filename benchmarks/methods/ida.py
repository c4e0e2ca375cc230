"""IDA trains nothing that a pair of faces waits for: its scores of all pairs of a batch are timed."""

import functools

import numpy as np

from benchmarks.methods.case import Case, Work, started
from experiments.methods import ida
from jaxface import metrics, training
from jaxface.layers.prototypes import l2_normalize

SCORED = 800  # embeddings that are scored, those of the people that the default data hold out


def scores(config: ida.Config, parallel: training.JitParallel, *, embedded: bool = False) -> Work:
    """Scores of all pairs of a batch: by cosine with weight 0, else aligned by synthetic candidates."""
    rng = np.random.default_rng(0)

    def unit(rows):
        return np.asarray(l2_normalize(rng.normal(size=(rows, config.embedding)).astype(np.float32)))

    model, aligns = ida.network(config), config.weight != 0
    network = {}
    if embedded:
        batch = {"embedding": unit(SCORED)}
    else:
        _, trained, batch = started(ida.build(config), "recognition", parallel)
        network = training.network_variables(trained.params["backbone"], trained.extra)
    candidates = {"candidates": unit(config.candidates)} if aligns else {}
    made = parallel.create(lambda: {"network": network, **candidates}, rules={})

    def step(state, batch):
        rows = batch.get("embedding")
        if rows is None:
            rows = metrics.flip_embeddings(
                lambda images: model.apply(state["network"], images, train=False), batch["image"]
            )
        if not aligns:
            return state, {"scores": rows @ rows.T}
        crowded = metrics.local_discrepancy(rows, state["candidates"], k=config.neighbors).mean
        scores = metrics.pairwise_aligned_similarity(rows, crowded, rows, crowded)
        return state, {"scores": scores}

    return Work(step, made, batch)


COSINE = {"weight": 0.0}
CASES = (
    Case("ida, images", ida.Config(), "cosines", scores, COSINE),
    Case("ida, embeddings", ida.Config(), "cosines", functools.partial(scores, embedded=True), COSINE),
)
