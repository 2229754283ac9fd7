// Times bitnet.cpp's I2_S kernels on a matrix-vector product in cache, on one thread. See bitnet_i2s.sh.

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <random>
#include <vector>

// Their arguments: columns, out, stride of out, weights, stride of rows in weights, activations, stride of columns of
// activations, rows.
using Kernel = void (*)(int, float *, size_t, const void *, size_t, const void *, size_t, int);
extern void ggml_vec_dot_i2_i8_s_1x1(int, float *, size_t, const void *, size_t, const void *, size_t, int);
extern void ggml_vec_dot_i2_i8_s_1xN(int, float *, size_t, const void *, size_t, const void *, size_t, int);
extern void ggml_vec_dot_i2_i8_s_1x4_32W(int, float *, size_t, const void *, size_t, const void *, size_t, int);

namespace {

// Whole cache lines, as ggml allocates tensors.
template <class T>
struct Aligned {
    using value_type = T;
    T *allocate(size_t count) { return static_cast<T *>(::operator new(count * sizeof(T), std::align_val_t(64))); }
    void deallocate(T *data, size_t) { ::operator delete(data, std::align_val_t(64)); }
    friend bool operator==(Aligned, Aligned) { return true; }
    friend bool operator!=(Aligned, Aligned) { return false; }
};
template <class T>
using Buffer = std::vector<T, Aligned<T>>;

double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Problem {
    int rows, columns;
    std::vector<uint8_t> codes;     // [rows, columns]: 0, 1, 2 for -1, 0, 1
    Buffer<int8_t> x;               // [columns]
    Buffer<uint8_t> by_row;         // 128 columns in 32 bytes, the first 32 in the highest two bits
    Buffer<uint8_t> by_fours;       // a column of 4 rows in a byte, the first row in the highest two bits

    Problem(int rows, int columns)
        : rows(rows), columns(columns), codes(size_t(rows) * columns), x(columns), by_row(codes.size() / 4), by_fours(codes.size() / 4) {
        std::mt19937 random(0);
        for (auto &code : codes) code = random() % 3;
        for (auto &value : x) value = int8_t(int(random() % 255) - 127);
        for (int row = 0; row < rows; row++) {
            for (int column = 0; column < columns; column++) {
                size_t i = size_t(row) * columns + column;
                by_row[i / 128 * 32 + i % 32] |= codes[i] << (6 - 2 * (i % 128 / 32));
                by_fours[size_t(row / 4) * columns + column] |= codes[i] << (6 - 2 * (row % 4));
            }
        }
    }

    void run(Kernel kernel, const Buffer<uint8_t> &weights, std::vector<float> &out) const {
        kernel(columns, out.data(), 1, weights.data(), columns, x.data(), 0, rows);
    }

    void check(const char *name, const std::vector<float> &out) const {
        for (int row = 0; row < rows; row++) {
            int sum = 0;
            for (int i = 0; i < columns; i++) sum += codes[size_t(row) * columns + i] * x[i];
            if (out[row] != float(sum)) {
                std::fprintf(stderr, "%s: row %d is %g, not %d\n", name, row, out[row], sum);
                std::exit(1);
            }
        }
    }

    // The fastest of many runs of about 1 ms each.
    void time(const char *name, Kernel kernel, const Buffer<uint8_t> &weights) const {
        std::vector<float> out(rows);
        run(kernel, weights, out);
        check(name, out);
        double weights_a_run = double(rows) * columns;
        int runs = std::max(1, int(1e8 / weights_a_run));
        double best = 1e9;
        for (double begin = seconds(); seconds() - begin < 2;) {
            double start = seconds();
            for (int i = 0; i < runs; i++) run(kernel, weights, out);
            best = std::min(best, (seconds() - start) / runs);
        }
        std::printf("%d x %d  %-8s %6.1f G weights/s\n", rows, columns, name, weights_a_run / best * 1e-9);
    }
};

}  // namespace

int main() {
    for (auto [rows, columns] : {std::pair{2048, 2048}, std::pair{5632, 2048}}) {
        Problem problem(rows, columns);
        problem.time("1x1", ggml_vec_dot_i2_i8_s_1x1, problem.by_row);
        problem.time("1xN", ggml_vec_dot_i2_i8_s_1xN, problem.by_row);
        problem.time("1x4_32W", ggml_vec_dot_i2_i8_s_1x4_32W, problem.by_fours);
    }
}
