#!/usr/bin/env bash
# The documents agree with the tree: relative links and the sections they name exist, files named in backticks exist, and the
# table of layers is the one that layers.sh enforces.
#
#   docs.sh ROOT
set -euo pipefail
cd "$1"

failed=0
complain() {
  echo "$*" >&2
  failed=1
}

# The names of the sections of a document, as links spell them.
anchors() {
  sed -nE '/^```/,/^```/d; s/^#+ +//p' "$1" | tr '[:upper:]' '[:lower:]' | sed -E 's/[^a-z0-9 _-]//g; s/ /-/g'
}

mapfile -t documents < <(git ls-files --cached --others --exclude-standard '*.md')
links=0
for document in "${documents[@]}"; do
  folder=$(dirname "$document")
  while IFS= read -r link; do
    ((++links))
    path=${link%%#*}
    target=$document
    [[ -n $path ]] && target=$folder/$path
    if [[ ! -e $target ]]; then
      complain "$document: the link '$link' leads nowhere"
    elif [[ $link == *'#'* ]] && ! anchors "$target" | grep --quiet --line-regexp --fixed-strings -- "${link#*#}"; then
      complain "$document: '$target' has no section '#${link#*#}'"
    fi
  done < <(sed '/^```/,/^```/d' "$document" | grep --only-matching --extended-regexp '\]\([^)[:space:]]+\)' |
    sed -E 's/^\]\(//; s/\)$//' | grep --invert-match --extended-regexp '^[a-z]+:' || true)
  while IFS= read -r name; do
    [[ -e $name ]] || complain "$document: there is no '$name'"
  done < <(grep --only-matching --extended-regexp \
    '`(src|include|tests|scripts|configs|examples|docs|cmake|benchmarks)/[A-Za-z0-9_./-]*`' "$document" | tr -d '`' || true)
done
((links > 0)) || complain "no link was found: the check itself is broken"

enforced=$(sed -nE 's/^ +\[([a-z]+)\]="(.*)"$/\1: \2/p' tests/checks/layers.sh)
documented=$(sed -nE 's/^\| `([a-z]+)` \|.*\| ([a-z ]+) \|$/\1: \2/p' docs/architecture.md | sed 's/: nothing of ours$/: /')
if [[ -z $enforced || $enforced != "$documented" ]]; then
  complain "the table of layers in docs/architecture.md must be the one of tests/checks/layers.sh:"
  diff <(echo "$enforced") <(echo "$documented") >&2 || true
fi

echo "$links links in ${#documents[@]} documents"
exit "$failed"
