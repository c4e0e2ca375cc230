import dataclasses

from benchmarks.methods.case import Case, started
from experiments.methods.intern import Config, build
from experiments.recipes.experts import AdaptationSpec, GeneralistSpec
from experiments.recipes.image_text import UpA

_SHORT = dataclasses.replace(
    Config(),
    up_a=UpA(steps=0),
    steps=2,
    generalist=GeneralistSpec(mains=("c",), steps=4),
    squeeze_steps=0,
    adaptation=AdaptationSpec(steps=0),
)


def _work(config, parallel):
    return started(build(config), "up_g_c" if config.generalist.mains else "up_e_c", parallel)


CASES = (Case("intern", _SHORT, "its expert alone", _work, {"generalist": GeneralistSpec(mains=())}),)
