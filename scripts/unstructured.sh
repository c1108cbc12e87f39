#!/usr/bin/env bash
# The published experiment at 50 % unstructured sparsity, with the granularity and threshold published for each model:
#   scripts/unstructured.sh huggyllama/llama-7b out
# Perplexities on wikitext2, ptb and c4, and the seven zero-shot tasks, end up below out/.
set -euo pipefail
model=${1:?model, like huggyllama/llama-7b}
out=${2:?folder for the results}

magnitude="block 0.1" sparsegpt="input1 0.001" wanda="output1 0.01"
case $model in
  huggyllama/llama-7b | huggyllama/llama-13b) sparsegpt="layer 0.1" ;;
  meta-llama/Llama-2-13b-hf) magnitude="layer 0.1" sparsegpt="layer 0.1" ;;
esac

run() { # name, then flags
  python main.py --model "$model" --eval_data wikitext2,ptb,c4 --save_ppl "$out/$1/ppl" --save_zeroshot "$out/$1/zeroshot" "${@:2}"
}
rebuilt() { # method, granularity, threshold
  run "$1-rebuilt" --prune_method "$1" --sparsity_ratio 0.5 --prune_barber --prune_granularity "$2" --threshold "$3"
}

run dense
for method in magnitude wanda sparsegpt; do
  run "$method" --prune_method "$method" --sparsity_ratio 0.5
  read -r granularity threshold <<<"${!method}"
  rebuilt "$method" "$granularity" "$threshold"
done
# SparseGPT's mask on the dense weights, without its weight update.
run sparsegpt-mask --prune_method sparsegpt --sparsity_ratio 0.5 --prune_barber --prune_granularity block --threshold 0
