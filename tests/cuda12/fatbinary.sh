#!/bin/bash
# fatbinary as clang calls it, by CUDA 13's, which takes images in another form: FATBINARY is its path.
arguments=()
for argument in "$@"; do
    if [[ $argument =~ ^--image=profile=(sm|compute)_([0-9a-z]+),(file=.*)$ ]]; then
        kind=elf
        [ "${BASH_REMATCH[1]}" = sm ] || kind=ptx
        argument="--image3=kind=$kind,sm=${BASH_REMATCH[2]},${BASH_REMATCH[3]}"
    fi
    arguments+=("$argument")
done
exec "${FATBINARY:?}" "${arguments[@]}"
