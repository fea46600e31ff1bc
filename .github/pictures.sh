#!/usr/bin/env bash
# Put the samples of revisions on the branch `pictures` of the remote, where a comment can show them, and print the
# comment's table. A revision whose samples are neither in git nor in DVC's cache has none.
#
#     .github/pictures.sh FOLDER ADDRESS REVISION...
#
# FOLDER is the one on the branch, ADDRESS the web address of the branch.
set -euo pipefail
folder=$1 address=$2
shift 2
samples=reports/evaluation/figures/samples.png
work=$(mktemp -d)
trap 'git worktree remove --force "$work"; git branch --quiet -D "new-$$" 2> /dev/null || true' EXIT
git worktree add --quiet --detach "$work"
if git -C "$work" fetch --quiet origin pictures 2> /dev/null; then
  git -C "$work" checkout --quiet --detach FETCH_HEAD
else
  git -C "$work" checkout --quiet --orphan "new-$$"
  git -C "$work" rm -r --quiet --force .
fi
mkdir -p "$work/$folder"
head="|" rule="|" row="|"
for revision in "$@"; do
  head+=" ${revision:0:7} |" rule+="---|"
  if dvc get --quiet --force . "$samples" --rev "$revision" --out "$work/$folder/${revision:0:7}.png" >&2; then
    row+=" ![Samples]($address/$folder/${revision:0:7}.png?raw=true) |"
  else
    row+=" no samples |"
  fi
done
git -C "$work" add --all
git -C "$work" diff --cached --quiet || git -C "$work" commit --quiet --message "Samples of $folder"
git -C "$work" push --quiet origin HEAD:refs/heads/pictures
printf '\n%s\n%s\n%s\n' "$head" "$rule" "$row"
