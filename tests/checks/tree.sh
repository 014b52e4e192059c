#!/usr/bin/env bash
# Rules about the files of the project as they are committed.
#
#   tree.sh ROOT COMPILE_COMMANDS
set -euo pipefail
cd "$1"
compile_commands=$2

failed=0
complain() {
  echo "$*" >&2
  failed=1
}

mapfile -t files < <(git ls-files --cached --others --exclude-standard)
((${#files[@]} > 0)) || complain "git lists no file: the check itself is broken"

for file in "${files[@]}"; do
  [[ -f $file ]] || continue
  (($(stat --format=%s "$file") <= 20 * 1024 * 1024)) || complain "$file: a committed file is at most 20 MB"
done

# A path of one machine means nothing on another. The pattern is split so that it does not find itself.
machine_path='(^|[^[:alnum:]._/-])/(wor''k|ho''me|ro''ot)/'
if git grep --untracked -n -I -E "$machine_path" -- . ':!tests/data'; then
  complain "no file names an absolute path of the machine it was written on"
fi
if git grep --untracked -n -I -E '\b(TO''DO|FIX''ME)\b' -- '*.cpp' '*.h' '*.cmake' 'CMakeLists.txt' scripts; then
  complain "unfinished work belongs in an issue, not in a comment"
fi

# Every source is compiled by something. The consumer in tests/install is a project of its own.
for file in "${files[@]}"; do
  case $file in
    tests/install/*) continue ;;
    *.cpp) grep --quiet --fixed-strings "/$file\"" "$compile_commands" || complain "$file: no target compiles this file" ;;
  esac
done

# A header of the public tree mirrors a folder of src/, and every script says how it is to be run.
for file in "${files[@]}"; do
  case $file in
    include/lcomp/*/*.h)
      folder=${file#include/lcomp/}
      [[ -d src/${folder%%/*} ]] || complain "$file: include/lcomp mirrors src; src/${folder%%/*} does not exist"
      head -n 20 "$file" | grep --quiet '^#pragma once$' || complain "$file: a header begins with #pragma once"
      ;;
    scripts/* | .ci/*) [[ -x $file ]] || complain "$file: must be executable" ;;
  esac
done

# The umbrella header is complete.
while read -r header; do
  grep --quiet --fixed-strings "\"$header\"" include/lcomp/lcomp.h || complain "include/lcomp/lcomp.h: must include $header"
done < <(cd include && find lcomp -name '*.h' ! -path lcomp/lcomp.h)

echo "${#files[@]} files"
exit "$failed"
