"""What a method costs beside its own baseline: step time and memory of the stage that it adds.

    python -m benchmarks.methods [--methods gabn lrfr ...] [--repeats 20] [--quick] [--out DIR]

Every method stands at its default configuration (images, networks, batch; CASSOD as a detector) and is built twice, as itself and
as what it is compared with. The stages before, such as a teacher's, are cut to a few steps on a few people: they matter for
shapes alone. The step is the one that `training.run` takes: compiled by the library's own parallelism for one device, the state
donated, the batch on the host. Both steps are timed in turns. Memory is the compiler's word: arguments (state and batch),
temporaries and what of the outputs is not written where the state was, together the peak.

IDA trains nothing that a pair of faces waits for, so its scores are timed instead: those of all pairs of a batch of images, and
those of embeddings alone. Where a baseline still reports the method's term as a metric (CCKD at weight 0), it pays for its value.
A ratio above 1 means that the method costs more.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import common
from experiments.methods import (
    acw,
    apvit,
    bamsprod,
    cassod,
    cckd,
    cloak,
    condensation_net,
    coupleface,
    ddc,
    fmvit,
    gabn,
    ida,
    lrfr,
    pseco,
    qdetr,
    qvit,
    rbonn,
    rco,
    rm_pfi,
    sparsevit,
)
from experiments.recipes.recognition import Recipe
from experiments.recipes.teachers import TeacherSpec
from experiments.studies import gabn as gabn_study
from experiments.studies import lrfr as lrfr_study
from jaxface import data, metrics, training
from jaxface.data.transforms.pixels import device_batch
from jaxface.layers.prototypes import l2_normalize
from jaxface.training.stages import Stages

EARLIER = 4  # steps of what is trained first; RCO records its teacher at each of them
SCORED = 800  # embeddings that IDA scores, those of the people that the default data hold out


class Work(NamedTuple):
    """A step, the state and the batch that it starts from."""

    step: Callable
    state: Any
    batch: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    """A method and its baseline.

    Attributes:
      name: of the row; its first word is the method.
      base: default configuration of the method.
      against: what the baseline is.
      work: (configuration, parallel) -> Work.
      baseline: overrides of `base` that make the baseline of it.
    """

    name: str
    base: Recipe
    against: str
    work: Callable[[Any, training.JitParallel], Work]
    baseline: Mapping[str, Any]


def started(stages: Stages, prefix: str, parallel: training.JitParallel) -> Work:
    """The first stage whose name starts with `prefix`, where it begins; those before it are run without being evaluated."""
    reached = []

    def until():
        source, outcome = iter(stages), None
        while not reached:
            stage = source.send(outcome) if isinstance(source, Generator) else next(source)
            stage = dataclasses.replace(stage, evaluate=None, figures=None)
            if stage.name.startswith(prefix):
                reached.append(stage)
                stage = dataclasses.replace(stage, steps=0)
            outcome = yield stage

    state = training.run(until(), parallel=parallel).state
    return Work(reached[0].step, state, next(reached[0].batches(state)))


def stage(build: Callable, name: str) -> Callable[[Any, training.JitParallel], Work]:
    """The work of a stage of an experiment."""
    return lambda config, parallel: started(build(config), name, parallel)


def ida_scores(config: ida.Config, parallel: training.JitParallel, *, embedded: bool = False) -> Work:
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
MASKS = cloak.methods(cloak.Config())
# The black boxes, which no mask is made on, are whatever is quick to make.
CLOAK = cloak.Config(baselines=False, people=4, targets=(TeacherSpec(backbone="mlp"),))
CASES = (
    Case("coupleface", coupleface.Config(), "embeddings alone", stage(coupleface.build, "student"), {"relations": "none"}),
    Case("cckd", cckd.Config(), "mimic alone", stage(cckd.build, "student"), {"congruence_weight": 0.0}),
    Case("rco", rco.Config(recorded=EARLIER), "final teacher alone", stage(rco.build, "student"), {"selection": "final"}),
    Case("lrfr", lrfr.Config(probe_sizes=(16,)), "full size only", stage(lrfr.build, "recognition"), lrfr_study.FULL),
    Case("acw", acw.Config(fusion_batch_size=64), "concatenation", stage(acw.build, "fusion"), {"fusion": "concat"}),
    Case("gabn, both terms", dataclasses.replace(gabn.Config(), **gabn_study.BOTH), "plain recognition",
         stage(gabn.build, "recognition"), gabn_study.BASELINE),
    Case("ida, images", ida.Config(), "cosines", ida_scores, COSINE),
    Case("ida, embeddings", ida.Config(), "cosines", functools.partial(ida_scores, embedded=True), COSINE),
    Case("rbonn", rbonn.Config(backbone="binary_resnet_pico"), "plain estimator", stage(rbonn.build, "binary"),
         {"weights": "straight_through"}),
    Case("bamsprod", bamsprod.Config(online_steps=0), "Adam", stage(bamsprod.build, "network"),
         {"optimizer": training.Optimizer(name="adam", learning_rate=0.3, schedule="linear", weight_decay=0.0)}),
    Case("cassod", cassod.Config.detector(), "dilated 3x3 context", stage(cassod.build, "detector"), {"context": "dilated"}),
    Case("cloak", CLOAK, "FI-UAP, equal steps", stage(cloak.build, "cloak"), {"cloak": MASKS["fi_uap"]}),
    Case("cloak, equal gradients", CLOAK, "OPOM, equal gradients", stage(cloak.build, "cloak"),
         {"cloak": MASKS["opom_equal_gradients"]}),
    Case("ddc", ddc.Config(), "plain 3x3 filters", stage(ddc.build, "classifier"), {"dilations": (1, 1, 1)}),
    Case("ddc, 5x5 filters", ddc.Config(depthwise_kernel=5, dilations=(1, 1, 1)), "plain 3x3 filters",
         stage(ddc.build, "classifier"), {"depthwise_kernel": 3}),
    Case("apvit", dataclasses.replace(apvit.Config.clutter(), dense_steps=0, test_noises=()), "nothing dropped",
         stage(apvit.build, "classifier"), {"keep_num": None, "keep_rates": (1.0,) * 4}),
    Case("sparsevit", sparsevit.Config(), "fixed counts, mean heads", stage(sparsevit.build, "pruning"),
         {"select": "top", "keep": (34, 7), "score": "mean"}),
    Case("rm_pfi", rm_pfi.Config(teacher_steps=EARLIER), "the student alone", stage(rm_pfi.build, "student"),
         {"rank_weight": 0.0, "pfi_weight": 0.0}),
    Case("rm_pfi, soft labels", rm_pfi.Config(teacher_steps=EARLIER), "soft labels of the same teacher",
         stage(rm_pfi.build, "student"), {"rank_weight": 0.0, "pfi_weight": 0.0, "soft_label_weight": 0.3}),
    Case("condensation_net", condensation_net.Config(), "one filter per map",
         stage(condensation_net.build, "classifier"), {"groups": 1}),
    Case("qdetr", qdetr.Config(), "LSQ, neither alignment nor distillation", stage(qdetr.build, "student"),
         {"detector": dataclasses.replace(qdetr.Config().detector, align_query="no"), "distillation": 0.0}),
    Case("pseco", pseco.Config(), "mean teacher, by overlap", stage(pseco.build, "pseco"),
         {"assign": "overlap", "vote": "none", "second_view": "none"}),
    Case("pseco, one view", pseco.Config(second_view="none"), "mean teacher, by overlap", stage(pseco.build, "pseco"),
         {"assign": "overlap", "vote": "none"}),
    Case("qvit", qvit.Config(), "LSQ and hard distillation, neither IRM nor DGD", stage(qvit.build, "student"),
         {"precision": dataclasses.replace(qvit.Config().precision, rectify=None), "dgd_weight": 0.0}),
    Case("fmvit", fmvit.Config(), "a ViT per sensor", stage(fmvit.build, "branches"), {"blocks": ("self",) * 4, "solo": "none"}),
    Case("fmvit, sampled sensors", fmvit.Config(solo="sampled"), "a ViT per sensor", stage(fmvit.build, "branches"),
         {"blocks": ("self",) * 4, "solo": "none"}),
)  # fmt: skip


def shortened(config: Recipe, *, quick: bool) -> Recipe:
    """A configuration whose earlier stages take seconds; with `quick` the step is tiny too."""
    tiny = {"backbone": "convnet", "embedding": 16} if quick else {}

    def cut(value):
        match value:
            case TeacherSpec():
                return dataclasses.replace(value, steps=EARLIER, **tiny)
            case data.RenderedFaces():
                return dataclasses.replace(value, identities=32, held_out_identities=8)
            case data.TonedFaces():
                return dataclasses.replace(value, identities=(16, 16), held_out_identities=8)
            case data.Presentations():
                return dataclasses.replace(
                    value, identities=16, development_identities=4, held_out_identities=4
                )
            case data.Scenes():
                return dataclasses.replace(value, people=8, held_out_people=4)
            case tuple():
                return tuple(map(cut, value))
        return value

    fields = {field.name: cut(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if quick and getattr(config, "embedding", None) is None:  # tiny already, some with networks of their own
        fields["batch_size"] = 16
    elif quick:
        fields |= {**tiny, "image_size": 16, "batch_size": 16}
    if isinstance(config, cloak.Config):
        fields["steps"] = EARLIER
    return dataclasses.replace(config, **fields)


def measure(case: Case, *, repeats: int, quick: bool) -> dict:
    """Both arms of a case."""
    parallel = training.make_parallel(devices=jax.devices()[:1])
    base, memory, calls = shortened(case.base, quick=quick), {}, {}
    for arm in ("method", "baseline"):
        config = base if arm == "method" else dataclasses.replace(base, **case.baseline)
        step, state, batch = case.work(config, parallel)

        def on_device(state, batch, step=step):
            return step(state, device_batch(batch))

        # As `JitParallel.compile` does it: the state is consumed and leaves as it came.
        state_shardings = jax.tree.map(lambda x: x.sharding, state)
        spread, everywhere = (
            NamedSharding(parallel.mesh, PartitionSpec(*spec)) for spec in ((parallel.mesh.axis_names,), ())
        )
        shardings = {
            "in_shardings": (state_shardings, spread),
            "out_shardings": (state_shardings, everywhere),
        }
        with jax.set_mesh(parallel.mesh):
            memory[arm] = common.memory(on_device, state, batch, donate_argnums=0, **shardings)
        calls[arm] = stepping(parallel.compile(step), state, batch)
    times = common.in_turns(calls, repeats=repeats, warmup=1)
    records = len(next(iter(batch.values())))
    seconds = {arm: common.summary(values, items=records) for arm, values in times.items()}
    for held in memory.values():
        fresh = held["output_bytes"] - held["aliased_bytes"]
        held["peak_bytes"] = held["argument_bytes"] + held["temporary_bytes"] + fresh
    return {
        "method": case.name,
        "against": case.against,
        "image_size": base.image_size,
        "records": records,
        "seconds": seconds,
        "memory": memory,
        "time_ratio": seconds["method"]["seconds_median"] / seconds["baseline"]["seconds_median"],
        "memory_ratio": memory["method"]["peak_bytes"] / memory["baseline"]["peak_bytes"],
    }


def stepping(step: Callable, state: Any, batch: Mapping[str, np.ndarray]) -> Callable[[], Any]:
    """A function that takes one more step each time."""

    def call():
        nonlocal state
        state, reported = step(state, batch)
        return state, reported

    return call


def line(row: dict) -> str:
    def side(arm):
        low, high = (1e3 * quartile for quartile in row["seconds"][arm]["seconds_quartiles"])
        median, held = 1e3 * row["seconds"][arm]["seconds_median"], row["memory"][arm]["peak_bytes"]
        return f"{median:.1f} ms ({low:.1f}-{high:.1f}), {held / 1e6:.1f} MB"

    return (
        f"{row['method']}: {side('method')}; {row['against']}: {side('baseline')}; "
        f"time x {row['time_ratio']:.2f}, memory x {row['memory_ratio']:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(dict.fromkeys(case.name.partition(",")[0] for case in CASES))
    parser.add_argument("--methods", nargs="+", default=names, choices=names)
    parser.add_argument(
        "--repeats", type=int, default=20, help="timed steps of each, fewer where they are slow"
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny networks and images; written with --out alone"
    )
    parser.add_argument(
        "--out", type=common.folder_argument, help="folder of the JSON file instead of results/<device>"
    )
    arguments = parser.parse_args()
    rows, written = [], None
    for case in CASES:
        if case.name.partition(",")[0] in arguments.methods:
            rows.append(measure(case, repeats=arguments.repeats, quick=arguments.quick))
            print(line(rows[-1]), flush=True)
            if arguments.out or not arguments.quick:
                written = common.write("methods", rows, packages=("flax", "optax"), folder=arguments.out)
    if written:
        print(written)


if __name__ == "__main__":
    main()
