#!/bin/sh
# Fetches bitnet.cpp's I2_S kernels from GitHub, compiles them with the harness beside this script, and prints billions
# of weights per second of a matrix-vector product in cache, on one thread.
#
#     experiments/peers/bitnet_i2s.sh FOLDER [SOURCE]
#
# FOLDER keeps the source and the programs; SOURCE is a ggml-bitnet-mad.cpp that is there already. Needs an x86-64 with
# AVX2, a C++17 compiler (CXX) and curl.
set -eu

commit=16da220ae2b510caff437d403288882687f44ae5
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:?usage: bitnet_i2s.sh FOLDER [SOURCE]}
mkdir -p "$folder/include"
cd "$folder"

if [ $# -gt 1 ]; then
    cp "$2" ggml-bitnet-mad.cpp
elif [ ! -e ggml-bitnet-mad.cpp ]; then
    curl -fsSL "https://raw.githubusercontent.com/microsoft/BitNet/$commit/src/ggml-bitnet-mad.cpp" -o partial
    mv partial ggml-bitnet-mad.cpp
fi
if [ ! -e include/gemm-config.h ]; then
    # Blocks of the sizes that bitnet.cpp has for x86-64.
    cat > include/gemm-config.h <<'END'
#define ACT_PARALLEL
#define ROW_BLOCK_SIZE 4
#define COL_BLOCK_SIZE 128
#define PARALLEL_SIZE 4
END
    # The rest of what the file includes is for its quantizer, which the harness does without.
    cat > include/ggml-quants.h <<'END'
#include <cstddef>
#include <cstdint>
#include <cstdlib>
enum { GGML_TYPE_I2_S };
inline size_t ggml_row_size(int, int64_t columns) { return columns; }
END
    : > include/ggml-bitnet.h
    : > include/ggml-cpu-impl.h
fi

for flags in "-march=native" "-mavx2 -mfma"; do
    ${CXX:-c++} -std=c++17 -O3 $flags -w -I include ggml-bitnet-mad.cpp "$here/bitnet_i2s.cpp" -o i2s
    echo "-O3 $flags"
    ./i2s
done
