#!/bin/bash
# On the GPU machine, once all pieces are there: put the model together, check it, let the run know.
#     arrived.sh PIECES PLACE
set -eu
cat "$1"/b* | tar x -C "$2/work"
(cd "$2/work" && sha256sum --quiet -c model.sha256)
touch "$2/out/arrived-model"
