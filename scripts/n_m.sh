#!/usr/bin/env bash
# The published experiment at n:m sparsity, with the published granularity and threshold:
#   scripts/n_m.sh huggyllama/llama-7b 2:4 out
set -euo pipefail
model=${1:?model, like huggyllama/llama-7b}
pattern=${2:?pattern, like 2:4 or 4:8}
out=${3:?folder for the results}

run() { # name, then flags
  python main.py --model "$model" --sparsity_type "$pattern" --eval_data wikitext2,ptb,c4 --save_ppl "$out/$1/ppl" "${@:2}"
}

run magnitude --prune_method magnitude
run magnitude-rebuilt --prune_method magnitude --prune_barber --prune_granularity block --threshold 0.1
run wanda --prune_method wanda
run wanda-rebuilt --prune_method wanda --prune_barber --prune_granularity output1 --threshold 0.01
