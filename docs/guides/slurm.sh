#!/bin/bash
# One run over the nodes of a Slurm job, one task for each GPU, that resumes by itself after preemption and at the time limit:
#   sbatch docs/guides/slurm.sh /shared/runs/sface sface --data recordio --data.path /shared/casia --batch-size 512
# Options of sbatch in front of the script stand above those written here. See docs/guides/clusters.md.
#SBATCH --job-name=jaxface
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

workdir=${1:?"usage: sbatch docs/guides/slurm.sh WORKDIR METHOD [flags of experiments.launch]"}
shift
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  "${PYTHON:-.venv/bin/python}" -m experiments.launch "$@" --workdir "$workdir"

# A run that was asked to stop has saved itself and ends with 0; only a finished one has results.
[[ -e $workdir/results.json ]] || scontrol requeue "$SLURM_JOB_ID"
