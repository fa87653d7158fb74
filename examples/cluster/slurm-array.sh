#!/bin/bash
# The same sweep without Ray: one job and one run folder for each seed, merged at the end.
#   job=$(sbatch --parsable --array=0-4 slurm-array.sh)
#   sbatch --dependency=afterok:$job --wrap "rankwise merge-runs runs/seed-{0..4} --output runs/reviews"
#SBATCH --job-name=rankwise
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-task=1
#SBATCH --time=08:00:00

set -euo pipefail

run="runs/seed-$SLURM_ARRAY_TASK_ID"
if [ -e "$run/recipe.toml" ]; then
  exec rankwise sweep --resume "$run"
fi
# A file of its own for validation: one that is cut from train would depend on the first seed.
# Tuning would choose a rate for each seed, so all have the same one.
exec rankwise sweep train.csv validation.csv --ranks 1-16 --seeds "$SLURM_ARRAY_TASK_ID" \
  --no-tune --learning-rate 3e-3 --out "$run"
