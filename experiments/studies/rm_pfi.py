"""What is claimed of RM + PFI in the small, and against what: `python -m experiments.reproduce rm_pfi`."""

from experiments.methods.rm_pfi import Config
from experiments.study import Study

_off = {"rank_weight": 0.0, "pfi_weight": 0.0}
STUDIES = {"ranks": Study("", "student/detection/ap", "rm", {"rm": {}, "none": _off}, Config(), shared=1)}
