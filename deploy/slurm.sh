#!/usr/bin/env bash
# The pipeline on one machine of a Slurm cluster or, with --nodes, on several: `sbatch [--nodes 2] deploy/slurm.sh`.
# The working copy, with an environment in .venv, must be on a disk that all machines share.
#SBATCH --job-name=reparam
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@180
#SBATCH --output=slurm-%j.log
#SBATCH --open-mode=append
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
# shellcheck disable=SC1091
. "${VENV:-.venv}/bin/activate"

# Three minutes before the time is over, and if another job needs the machine, training leaves a checkpoint and
# this job goes back into the queue.
requeue() {
    scancel --signal TERM "$SLURM_JOB_ID"
    wait
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap requeue TERM

# --force: a job that was killed may have left files that DVC does not know. Checkpoints are not among them.
dvc pull --run-cache --allow-missing --force
dvc repro preprocess # all machines read its data
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export LAUNCH="torchrun --nnodes $SLURM_NNODES --nproc-per-node ${SLURM_GPUS_ON_NODE:-1} --master-addr $first --master-port ${PORT:-29500}"
# The first machine runs the stage under DVC, the others help. If DVC finds nothing to train, --wait ends them.
# shellcheck disable=SC2016 # SLURM_NODEID is that of each machine
srun --wait=60 bash -c '
    export REPARAM_LAUNCH="$LAUNCH --node-rank $SLURM_NODEID"
    if [ "$SLURM_NODEID" = 0 ]; then exec dvc repro train; else exec reparam train; fi' &
wait $! || true
trap - TERM
dvc status --quiet train # fails where training did
dvc repro                # the stages after it
dvc push --run-cache
