#!/usr/bin/env bash
# Measures what docs/benchmarks.md reports of a SmolLM2-135M-Instruct directory: each job's CPU seconds and peak memory,
# then perplexity, KL and top-1 agreement of its output on the first windows of a held-out text.
#
#   benchmarks/smollm2.sh LCOMP MODEL CALIBRATION_TEXT EVALUATION_TEXT OUTPUT_DIR [WINDOWS=16] [JOB]...
#
# Needs GNU time and jq. A job that has a line in OUTPUT_DIR/results.tsv is skipped, so the script can be interrupted and
# called again. Without JOB all of them run, in the order below.
set -euo pipefail

if (($# < 5)); then
  sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
lcomp=$1 model=$2 calibration=$3 text=$4 output=$5 windows=${6:-16}
shift $(($# < 6 ? 5 : 6))
mkdir -p "$output"
results=$output/results.tsv
[[ -e $results ]] || printf 'job\tppl\tKL\ttop-1\tMB\tCPU s\tpeak MB\n' >"$results"

# settings JOB: the --set arguments of a job, one to a line.
settings() {
  case $1 in
    *w3*) echo /passes/0/bits=3 ;;
    *) echo /passes/0/bits=4 ;;
  esac
  case $1 in
    rtn*) echo /passes/0/method=rtn ;;
    *)
      printf '%s\n' /passes/0/method=gptq /passes/0/mismatch=none /passes/0/sweeps=0 /passes/0/refit=false
      echo "/calibration/text=$calibration"
      ;;
  esac
  case $1 in
    gptq*-128x128*) printf '%s\n' /calibration/samples=128 /calibration/length=128 ;;
    gptq*-32x2048*) printf '%s\n' /calibration/samples=32 /calibration/length=2048 ;;
    gptq*) printf '%s\n' /calibration/samples=8 /calibration/length=2048 ;;
  esac
  case $1 in
    *-starts64*) echo /calibration/starts=64 ;;
    *-starts128*) echo /calibration/starts=128 ;;
    *-starts256*) echo /calibration/starts=256 ;;
    *-starts512*) echo /calibration/starts=512 ;;
  esac
  case $1 in
    *-static*) echo /passes/0/act_order=static_groups ;;
    *-aware*) echo /passes/0/act_order=group_aware ;;
  esac
  case $1 in
    *-plain*) printf '%s\n' /passes/0/range=min_max /passes/0/sweeps=0 /passes/0/refit=false ;;
    *-mse*) echo /passes/0/range=mse ;;
  esac
  case $1 in *-sweeps*) printf '%s\n' /passes/0/sweeps=2 /passes/0/refit=true ;; esac
  case $1 in *-split*) echo /passes/0/mismatch=split ;; esac
  case $1 in *-block*) echo /passes/0/true_sequential=false ;; esac
  case $1 in *-damp5*) echo /passes/0/damping=0.05 ;; esac
  case $1 in *-f32*) echo /compute=f32 ;; esac
}

# measure JOB: runs it, evaluates its output and adds a line to the results.
measure() {
  local job=$1 arguments=() setting
  if cut -f1 "$results" | grep -qxF "$job"; then
    return
  fi
  while read -r setting; do arguments+=(--set "$setting"); done < <(settings "$job")
  # Work that an earlier call left unfinished goes too: continued, it would be measured without its first part.
  rm -rf "${output:?}/$job" "$output/$job.lcomp-work" "$output/$job.time"
  /usr/bin/time --format '%U %S %M' --output "$output/$job.time" "$lcomp" run "$output/job.json" \
    --set "/model=$model" --set "/output=$output/$job" "${arguments[@]}" --quiet --json >"$output/$job.run.json"
  "$lcomp" eval "$output/$job" --text "$text" --max-windows "$windows" --reference "$model" --quiet --json \
    >"$output/$job.eval.json"
  jq --raw-output --arg job "$job" --rawfile time "$output/$job.time" '
    ($time | split("\n") | map(select(test("^[0-9.]+ [0-9.]+ [0-9]+$")))[0] | split(" ") | map(tonumber)) as $used |
    [$job, .perplexity, .kl_mean, .top1_agreement, .bytes / 1e6, $used[0] + $used[1], $used[2] * 1024 / 1e6] | @tsv' \
    "$output/$job.eval.json" | tee -a "$results"
}

# 64 divides all widths of the model, 576 and 1536; 128 does not.
echo '{ "model": "given by --set", "output": "given by --set", "passes": [ { "method": "rtn", "group_size": 64 } ] }' >"$output/job.json"
if (($# == 0)); then
  set -- rtn-w4 gptq-w4 gptq-w4-starts128 rtn-w3 gptq-w3 gptq-w3-starts128 gptq-w4-f32 gptq-w4-32x2048-starts512 \
    gptq-w3-32x2048-starts512 gptq-w4-128x128 gptq-w3-128x128 gptq-w4-starts64 gptq-w4-starts256 \
    gptq-w4-starts128-static gptq-w4-starts128-aware gptq-w4-starts128-mse gptq-w4-starts128-block \
    gptq-w4-starts128-damp5 gptq-w3-starts128-static gptq-w3-starts128-aware gptq-w3-starts128-mse
fi
for job; do measure "$job"; done
