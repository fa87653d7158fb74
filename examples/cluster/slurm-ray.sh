#!/bin/bash
# A sweep on four machines of a Slurm cluster: Ray on each of them, and rankwise on the first.
#   sbatch slurm-ray.sh
# Submit the same file again to resume. The folder is on a disk that the first machine can read after the job.
#SBATCH --job-name=rankwise
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-task=1
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@120

set -euo pipefail

run=runs/reviews
port=6379
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head_address="$(srun --nodes=1 --ntasks=1 -w "${hosts[0]}" hostname --ip-address | awk '{print $1}'):$port"
export RAY_USAGE_STATS_ENABLED=0

srun --nodes=1 --ntasks=1 -w "${hosts[0]}" --overlap \
  ray start --head --port="$port" --num-cpus="$SLURM_CPUS_PER_TASK" --include-dashboard=false --block &
for host in "${hosts[@]:1}"; do
  srun --nodes=1 --ntasks=1 -w "$host" --overlap \
    ray start --address="$head_address" --num-cpus="$SLURM_CPUS_PER_TASK" --block &
done
until ray status --address="$head_address" > /dev/null 2>&1; do sleep 2; done

if [ -e "$run/recipe.toml" ]; then
  what=(--resume "$run")
else
  what=(reviews.csv --ranks 1-16 --seeds 0-4 --out "$run")
fi
# srun passes the SIGTERM two minutes before the end on, and the sweep saves a checkpoint.
srun --nodes=1 --ntasks=1 -w "${hosts[0]}" --overlap \
  rankwise sweep "${what[@]}" --ray "$head_address" --ray-cpus "$SLURM_CPUS_PER_TASK" &
sweep=$!
trap 'kill -TERM "$sweep"' TERM
wait "$sweep" || wait "$sweep"  # the trap ends the first one
