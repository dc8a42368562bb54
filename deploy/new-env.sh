#!/bin/sh
# Writes .env from .env.example, with a random value of 64 hexadecimal digits for each `generate`.
set -eu
cd "$(dirname "$0")/.."
if [ -e .env ]; then
    echo ".env is there already: its passwords are in the volumes, so it is kept" >&2
    exit 1
fi
umask 077
while IFS= read -r line; do
    case $line in
        '#'*) ;;
        *generate) line=${line%generate}$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n') ;;
    esac
    printf '%s\n' "$line"
done < .env.example > .env.new
mv .env.new .env
echo "written: .env"
