#!/usr/bin/env bash
# Measures the methods side by side on one model: the tables of docs/quantization.md and docs/sparsity.md.
#
#   benchmarks/methods.sh LCOMP MODEL CALIBRATION_TEXT SAMPLES LENGTH EVALUATION_TEXT WINDOW MAX_WINDOWS OUTPUT_DIR [ROW]...
#
# One Markdown row for each: perplexity, KL and top-1 against the dense model, megabytes of the tensors, CPU seconds and
# peak memory of `lcomp run` without evaluation, with one thread. MAX_WINDOWS 0 takes all. A row that OUTPUT_DIR/rows.md
# has is not measured again. Without ROW all of them. Needs GNU time and jq.
set -euo pipefail

if (($# < 9)); then
  sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
lcomp=$1 model=$(realpath "$2") calibration=$(realpath "$3") samples=$4 length=$5
text=$(realpath "$6") window=$7 windows=$8 output=$9
shift 9
mkdir -p "$output"
touch "$output/rows.md"

# name | passes
list() {
  local g='"group_size":64' b s
  for b in 4 3; do
    cat <<END
rtn W$b g64|{"method":"rtn","bits":$b,$g}
rtn W$b g64, mid_range|{"method":"rtn","bits":$b,$g,"symmetric_convention":"mid_range"}
gptq W$b g64, plain|{"method":"gptq","bits":$b,$g,"range":"min_max"}
gptq W$b g64|{"method":"gptq","bits":$b,$g}
gptq W$b g64, asymmetric|{"method":"gptq","bits":$b,$g,"symmetric":false}
gptq W$b g64, refit, 2 sweeps|{"method":"gptq","bits":$b,$g,"refit":true,"sweeps":2}
gptq W$b g64, split|{"method":"gptq","bits":$b,$g,"mismatch":"split"}
gptq W$b g64, split, refit, 2 sweeps|{"method":"gptq","bits":$b,$g,"mismatch":"split","refit":true,"sweeps":2}
awq W$b g64|{"method":"awq","bits":$b,$g}
awq W$b g64, asymmetric|{"method":"awq","bits":$b,$g,"symmetric":false}
awq + gptq W$b g64|{"method":"awq","bits":$b,$g,"solver":"gptq","range":"hessian"}
mixed_precision, $b.26 bits|{"method":"mixed_precision","bits_per_weight":$b.26,"min_bits":$((b - 1)),$g}
END
  done
  cat <<END
rtn W3 per channel|{"method":"rtn","bits":3,"granularity":"channel"}
squeezellm W3|{"method":"squeezellm","bits":3}
squeezellm W3, 0.45 % kept|{"method":"squeezellm","bits":3,"sensitive":0.0005,"outliers":0.004}
int8, per channel and per token|{"method":"int8"}
int8, per tensor|{"method":"int8","granularity":"tensor","activation_granularity":"tensor"}
int8, per tensor, static|{"method":"int8","granularity":"tensor","activation_granularity":"tensor","activation_dynamic":false}
smoothquant 0.5, per tensor|{"method":"smoothquant","granularity":"tensor","activation_granularity":"tensor"}
smoothquant 0.5, per tensor, static|{"method":"smoothquant","level":"o3"}
smoothquant 0.8 + gptq|{"method":"smoothquant","alpha":0.8,"solver":"gptq"}
llm_int8, threshold 6|{"method":"llm_int8"}
llm_int8, threshold 3|{"method":"llm_int8","threshold":3}
rtn NF4 g64|{"method":"rtn","format":"nf4",$g}
gptq NF4 g64|{"method":"gptq","format":"nf4",$g}
gptq NF4 g64, double quantization|{"method":"gptq","format":"nf4","double_quant":true,$g}
rtn FP8 per channel|{"method":"rtn","format":"fp8_e4m3","granularity":"channel"}
gptq FP8 per channel|{"method":"gptq","format":"fp8_e4m3","granularity":"channel"}
magnitude 50 %|{"method":"magnitude"}
wanda 50 %|{"method":"wanda"}
wanda 50 %, refit|{"method":"wanda","refit":true}
ria 50 %|{"method":"ria"}
obd 50 %|{"method":"obd"}
sparsegpt 50 %, scope tensor|{"method":"sparsegpt","scope":"tensor"}
sparsegpt 50 %|{"method":"sparsegpt"}
sparsegpt 50 %, refit|{"method":"sparsegpt","refit":true}
magnitude 2:4|{"method":"magnitude","pattern":"2:4"}
wanda 2:4|{"method":"wanda","pattern":"2:4"}
wrp 2:4|{"method":"wrp"}
wrp 2:4, refit|{"method":"wrp","refit":true}
sparsegpt 2:4|{"method":"sparsegpt","pattern":"2:4"}
sparsegpt 2:4, refit|{"method":"sparsegpt","pattern":"2:4","refit":true}
magnitude 70 %|{"method":"magnitude","sparsity":0.7}
obd 70 %|{"method":"obd","sparsity":0.7}
wanda 70 %|{"method":"wanda","sparsity":0.7}
sparsegpt 70 %|{"method":"sparsegpt","sparsity":0.7}
END
  for s in 5 7; do
    cat <<END
magnitude ${s}0 %, global|{"method":"magnitude","sparsity":0.$s,"allocation":"global"}
obd ${s}0 %, global|{"method":"obd","sparsity":0.$s,"allocation":"global"}
wanda ${s}0 %, owl|{"method":"wanda","sparsity":0.$s,"allocation":"owl"}
wanda ${s}0 %, budget|{"method":"wanda","sparsity":0.$s,"allocation":"budget"}
sparsegpt ${s}0 %, owl|{"method":"sparsegpt","sparsity":0.$s,"allocation":"owl"}
sparsegpt ${s}0 %, budget|{"method":"sparsegpt","sparsity":0.$s,"allocation":"budget"}
END
  done
  cat <<END
sparsegpt 50 % and 4 bits, one sweep|{"method":"sparsegpt","quantize":true,"bits":4,$g}
sparsegpt 50 %, then gptq 4 bits|{"method":"sparsegpt"},{"method":"gptq","bits":4,$g}
fisher_mask 20 %|{"method":"fisher_mask","ratio":0.2}
fisher_mask 20 %, scales|{"method":"fisher_mask","ratio":0.2,"compensate":"scales"}
fisher_mask 20 %, none|{"method":"fisher_mask","ratio":0.2,"compensate":"none"}
fisher_mask 20 %, uniform|{"method":"fisher_mask","ratio":0.2,"uniform":true}
llm_pruner 20 %, global|{"method":"llm_pruner","ratio":0.2,"selection":"global"}
llm_pruner 20 %, global, none|{"method":"llm_pruner","ratio":0.2,"selection":"global","compensate":"none"}
l2 20 %, global|{"method":"llm_pruner","ratio":0.2,"selection":"global","importance":"l2"}
l2 20 %, global, none|{"method":"llm_pruner","ratio":0.2,"selection":"global","importance":"l2","compensate":"none"}
END
}

# row NAME PASSES: runs the job, evaluates it and adds its row.
row() {
  local name=$1 passes=$2 out=$output/out limit=()
  rm -rf "$out" "$out.lcomp-work"
  jq -n --arg model "$model" --arg output "$(realpath -m "$out")" --arg text "$calibration" --argjson samples "$samples" \
    --argjson length "$length" --argjson passes "[$passes]" '{$model, $output, threads: 1,
      calibration: {$text, $samples, $length}, $passes}' >"$output/job.json"
  /usr/bin/time --format '%U %S %M' --output "$output/time" "$lcomp" run "$output/job.json" --quiet >/dev/null
  ((windows == 0)) || limit=(--max-windows "$windows")
  "$lcomp" eval "$out" --text "$text" --window "$window" "${limit[@]}" --reference "$model" --threads 1 --json \
    >"$output/eval.json"
  read -r user system peak <"$output/time"
  jq -r --arg name "$name" --argjson cpu "$user" --argjson system "$system" --argjson peak "$peak" '
    def fixed(n): . * pow(10; n) | round | tostring | if length <= n then ("0" * (n + 1 - length)) + . else . end
      | .[:-n] + "." + .[-n:];
    "| \($name) | \(.perplexity | fixed(3)) | \(.kl_mean | fixed(4)) | \(100 * .top1_agreement | fixed(1)) % | \(.bytes / 1e6
      | fixed(2)) | \($cpu + $system | fixed(1)) | \($peak / 1000 | round) |"' "$output/eval.json" | tee -a "$output/rows.md"
}

while IFS='|' read -r name passes; do
  if (($#)); then
    wanted=no
    for pick in "$@"; do [[ $pick == "$name" ]] && wanted=yes; done
    [[ $wanted == yes ]] || continue
  fi
  grep -qF "| $name |" "$output/rows.md" || row "$name" "$passes"
done < <(list)
