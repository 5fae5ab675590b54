# shellcheck shell=bash
# What the sbatch files of this folder share: they source it and call run_stage.

# To adapt, here or when submitting (MODULES='cuda/12.9' sbatch ...). The names are HiPerGator's as of 2026; `module spider
# cuda` lists others. The wheels of PyTorch bring their own CUDA: the module is what DeepSpeed compiles CPU offload with,
# and wants the major version that `python -c 'import torch; print(torch.version.cuda)'` prints.
MODULES="${MODULES-cuda/12.8.1}"      # several with blanks between them; MODULES= for none
PYTHON="${PYTHON:-.venv/bin/python}"  # made by `make setup`; with a module's python, add that module above
MAX_REQUEUES="${MAX_REQUEUES:-20}"

# run_stage STAGE [ARGUMENTS OF recipes.launch] [-- ARGUMENTS OF THE RECIPE]
# Runs a stage on all nodes and GPUs of the job. A run that was preempted, or has come near its time limit, has saved a
# checkpoint and exits with 75: the job goes back to the queue under the same number, and resumes.
run_stage() {
    if [ -n "$MODULES" ]; then
        # shellcheck disable=SC2086 # one argument per module
        module load $MODULES
    fi
    set -u
    # srun takes no notice of sbatch's --cpus-per-task since Slurm 22.05.
    export PYTHON SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"

    # The processes of all nodes meet at the address by which Slurm itself reaches the first.
    local node address status=0 restarts="${SLURM_RESTART_COUNT:-0}"
    read -r node < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    address=$(scontrol --oneliner show node "$node" | grep --only-matching --perl-regexp 'NodeAddr=\K\S+')
    # Below the ports that Linux gives out itself, and another for every job: jobs may share a node.
    export MAIN_ADDRESS="$address" MAIN_PORT=$((20000 + SLURM_JOB_ID % 10000))
    # Not all arguments: recipes.launch prints the command, without a token that is among them.
    echo "$(date --iso-8601=seconds) job $SLURM_JOB_ID, start $((restarts + 1)), on $SLURM_JOB_NODELIST:" \
        "$1, meeting at $MAIN_ADDRESS:$MAIN_PORT"

    # exec: signals go to the task itself, and bash would die of them. If a node's task ends and the others do not, they
    # are ended after two minutes; at once would cut off those that are saving.
    # shellcheck disable=SC2016 # the variables are those of the node
    srun --kill-on-bad-exit=0 --wait=120 bash -c '
        exec "$PYTHON" -m recipes.launch "$0" --num_machines "$SLURM_NNODES" --machine_rank "$SLURM_NODEID" \
            --main_process_ip "$MAIN_ADDRESS" --main_process_port "$MAIN_PORT" "$@"' "$@" || status=$?

    if [ "$status" -ne 75 ]; then
        exit "$status"
    fi
    if [ "$restarts" -ge "$MAX_REQUEUES" ]; then
        echo "Preempted, and requeued $restarts times already (MAX_REQUEUES): submit it again to go on." >&2
        exit 75
    fi
    echo "$(date --iso-8601=seconds) job $SLURM_JOB_ID goes back to the queue"
    scontrol requeue "$SLURM_JOB_ID"
}
