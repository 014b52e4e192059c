#!/usr/bin/env bash
# A folder includes only the folders that the table allows it (the table of docs/architecture.md).
#
#   layers.sh ROOT
set -euo pipefail
cd "$1"

declare -A may_include=(
  [core]=""
  [linalg]="core"
  [quant]="core linalg"
  [sparse]="core linalg quant"
  [lowrank]="core linalg quant"
  [io]="core"
  [model]="core linalg io quant sparse lowrank"
  [calib]="core linalg io model"
  [distill]="core linalg quant sparse lowrank io model calib"
  [eval]="core linalg sparse io model calib"
  [pipeline]="core linalg quant sparse lowrank io model calib distill eval"
  [report]="core io pipeline"
  [cli]="core linalg quant sparse lowrank io model calib distill eval pipeline report"
)

failed=0
complain() {
  echo "$*" >&2
  failed=1
}

includes=0
while IFS=: read -r file line target; do
  folder=${file#src/}
  folder=${folder#include/lcomp/}
  folder=${folder%%/*}
  [[ $folder == lcomp.h ]] && continue # includes everything, and nothing of ours includes it
  if [[ ! -v may_include[$folder] ]]; then
    complain "$file: the folder '$folder' is not in the table of layers"
    continue
  fi
  ((++includes))
  [[ $target == "$folder" || " ${may_include[$folder]} " == *" $target "* ]] && continue
  complain "$file:$line: '$folder' may include ${may_include[$folder]:-nothing of ours}; it includes '$target'"
done < <(
  folders=$(IFS='|'; echo "${!may_include[*]}")
  grep --recursive --line-number --extended-regexp --include='*.h' --include='*.cpp' \
    "^[[:space:]]*#[[:space:]]*include[[:space:]]*[<\"](lcomp/)?($folders)/" src include |
    sed -E 's#^([^:]+):([0-9]+):.*[<"](lcomp/)?([a-z]+)/.*$#\1:\2:\4#'
)
((includes > 0)) || complain "no include of ours was found: the check itself is broken"

# nlohmann/json is for sources only: it would reach every user of the library.
if grep --recursive --line-number --extended-regexp 'include *[<"](nlohmann|valijson|CLI/)' include; then
  complain "public headers must not include nlohmann/json, valijson or CLI11"
fi

echo "$includes includes between folders"
exit "$failed"
