// Passes over feature maps of a supernet's edges, each of which does in one reading all that needs no sum over the batch.
// Compiled for the machine it runs on by build.py; passes.py says what each computes and checks what it is given.
//
// Maps are [B, H, W, C], dense. An image at a time is what a core's cache holds: what one step of a pass writes is there
// when the next one reads it. Images are shared out among threads, and sums are taken image by image and then over
// images in order, so that the number of threads changes no bit.

#include <omp.h>

#ifndef _OPENMP
#error "without OpenMP all passes would be on one thread"
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

using std::int64_t;

namespace {

// L channels at a time.
template <typename T, int L>
struct Lanes {
    typedef T Vector __attribute__((vector_size(L * sizeof(T))));
    static Vector load(const T* from) {
        Vector v;
        std::memcpy(&v, from, sizeof v);
        return v;
    }
    static void store(T* to, Vector v) { std::memcpy(to, &v, sizeof v); }
    static Vector all(T value) { return value - Vector{}; }  // x - 0 is x, also for -0: no operation is left of it
};

// Numbers of a pass's own, not set to anything, at the start of a cache line: a vector across two costs two reads.
template <typename T>
class Scratch {
    std::unique_ptr<T[]> held_;
    T* begin_;

public:
    explicit Scratch(int64_t size) : held_(new T[size + 64 / sizeof(T)]) {
        const auto address = reinterpret_cast<std::uintptr_t>(held_.get());
        begin_ = held_.get() + (-address % 64) / sizeof(T);
    }
    Scratch(Scratch&&) = default;
    T* data() { return begin_; }
    const T* data() const { return begin_; }
    T& operator[](int64_t i) { return begin_[i]; }
    const T& operator[](int64_t i) const { return begin_[i]; }
};

// One for each thread, made before threads begin, where a lack of memory can still be told.
template <typename T>
std::vector<Scratch<T>> for_threads(int threads, int64_t size) {
    std::vector<Scratch<T>> found;
    for (int t = 0; t < threads; ++t) found.emplace_back(size);
    return found;
}

// A depthwise convolution, padded so that stride 1 keeps the size, and the pointwise product behind it; without kernels,
// at stride 1, the product alone. ``relu``: of the input, where no norm is before it.
struct Shape {
    int64_t images, height, width, channels, out_channels, kernel, stride, dilation, relu;
    int64_t margin() const { return dilation * (kernel / 2); }
    int64_t taps() const { return kernel * kernel; }
    int64_t padded_height() const { return height + 2 * margin(); }
    int64_t padded_width() const { return width + 2 * margin(); }
    int64_t out_height() const { return (height + stride - 1) / stride; }
    int64_t out_width() const { return (width + stride - 1) / stride; }
    int64_t in_size() const { return height * width * channels; }
    int64_t padded_size() const { return padded_height() * padded_width() * channels; }
    int64_t out_pixels() const { return out_height() * out_width(); }
    int64_t convolved_size() const { return out_pixels() * channels; }
    int64_t out_size() const { return out_pixels() * out_channels; }
};

// Where moments are given, relu((x - mean) / sigma); else x, or relu(x). With a margin of zeros around it.
template <typename T, int L>
void pad(const Shape& s, const T* x, const T* moments, bool relu, T* h) {
    using V = Lanes<T, L>;
    const int64_t m = s.margin(), C = s.channels, row = s.padded_width() * C;
    std::memset(h, 0, m * row * sizeof(T));
    std::memset(h + (m + s.height) * row, 0, m * row * sizeof(T));
    for (int64_t y = 0; y < s.height; ++y) {
        T* to = h + (m + y) * row;
        std::memset(to, 0, m * C * sizeof(T));
        std::memset(to + (m + s.width) * C, 0, m * C * sizeof(T));
        to += m * C;
        const T* from = x + y * s.width * C;
        if (moments == nullptr) {
            if (!relu) std::memcpy(to, from, s.width * C * sizeof(T));
            for (int64_t i = 0; relu && i < s.width * C; i += L) {
                const auto value = V::load(from + i);
                V::store(to + i, value <= 0 ? V::all(0) : value);
            }
            continue;
        }
        for (int64_t c = 0; c < C; c += L) {
            const auto mu = V::load(moments + c), inv = V::load(moments + 2 * C + c);
            for (int64_t i = c; i < s.width * C; i += C) {
                const auto u = (V::load(from + i) - mu) * inv;
                V::store(to + i, u <= 0 ? V::all(0) : u);
            }
        }
    }
}

// P neighbouring pixels of a depthwise convolution.
template <typename T, int L, int P>
void convolve_pixels(const T* h, int64_t row, int64_t C, int64_t kernel, int64_t step, int64_t dilation, const T* taps, T* z) {
    using V = Lanes<T, L>;
    typename V::Vector sum[P] = {};
    for (int64_t i = 0; i < kernel; ++i)
        for (int64_t j = 0; j < kernel; ++j, taps += C) {
            const auto tap = V::load(taps);
            const T* seen = h + i * dilation * row + j * dilation * C;
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) sum[p] += tap * V::load(seen + p * step * C);
        }
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) V::store(z + p * C, sum[p]);
}

// A depthwise convolution of a padded image: taps are [kernel * kernel, C].
template <typename T, int L>
void convolve(const Shape& s, const T* h, const T* taps, T* z, int64_t stride, int64_t rows, int64_t columns) {
    const int64_t C = s.channels, row = s.padded_width() * C;
    for (int64_t y = 0; y < rows; ++y)
        for (int64_t c = 0; c < C; c += L) {
            const T* from = h + y * stride * row + c;
            T* to = z + y * columns * C + c;
            int64_t x = 0;
            for (; x + 8 <= columns; x += 8)
                convolve_pixels<T, L, 8>(from + x * stride * C, row, C, s.kernel, stride, s.dilation, taps + c, to + x * C);
            for (; x < columns; ++x)
                convolve_pixels<T, L, 1>(from + x * stride * C, row, C, s.kernel, stride, s.dilation, taps + c, to + x * C);
        }
}

// The depthwise convolution in z; the image itself where there are no kernels.
template <typename T, int L>
const T* convolved(const Shape& s, const T* h, const T* kernels, const T* taps, T* z) {
    if (kernels == nullptr) return h;
    convolve<T, L>(s, h, taps, z, s.stride, s.out_height(), s.out_width());
    return z;
}

// P pixels of x M, O times L columns of it: x is [n, I], M is [I, C].
template <typename T, int L, int P, int O>
void product_pixels(const T* x, const T* matrix, int64_t I, int64_t C, T* y) {
    using V = Lanes<T, L>;
    typename V::Vector sum[P][O] = {};
    for (int64_t c = 0; c < I; ++c) {
        typename V::Vector m[O];
#pragma GCC unroll 4
        for (int o = 0; o < O; ++o) m[o] = V::load(matrix + c * C + o * L);
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) {
            const auto value = V::all(x[p * I + c]);
#pragma GCC unroll 4
            for (int o = 0; o < O; ++o) sum[p][o] += value * m[o];
        }
    }
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
        for (int o = 0; o < O; ++o) V::store(y + p * C + o * L, sum[p][o]);
}

template <typename T, int L, int P, int O>
void product_columns(const T* x, const T* matrix, int64_t n, int64_t I, int64_t C, T* y) {
    int64_t i = 0;
    for (; i + P <= n; i += P) product_pixels<T, L, P, O>(x + i * I, matrix, I, C, y + i * C);
    for (; i < n; ++i) product_pixels<T, L, 1, O>(x + i * I, matrix, I, C, y + i * C);
}

template <typename T, int L>
void product(const T* x, const T* matrix, int64_t n, int64_t I, int64_t C, T* y) {
    int64_t c = 0;
    for (; c + 4 * L <= C; c += 4 * L) product_columns<T, L, 6, 4>(x, matrix + c, n, I, C, y + c);
    for (; c + 2 * L <= C; c += 2 * L) product_columns<T, L, 8, 2>(x, matrix + c, n, I, C, y + c);
    for (; c < C; c += L) product_columns<T, L, 8, 1>(x, matrix + c, n, I, C, y + c);
}

// G rows of a^T b, O times L columns of it: a is [n, A], b is [n, C].
template <typename T, int L, int G, int O>
void outer_block(const T* a, const T* b, int64_t n, int64_t A, int64_t C, T* found) {
    using V = Lanes<T, L>;
    typename V::Vector sum[G][O] = {};
    for (int64_t i = 0; i < n; ++i) {
        typename V::Vector of_b[O];
#pragma GCC unroll 4
        for (int o = 0; o < O; ++o) of_b[o] = V::load(b + i * C + o * L);
#pragma GCC unroll 16
        for (int g = 0; g < G; ++g) {
            const auto of_a = V::all(a[i * A + g]);
#pragma GCC unroll 4
            for (int o = 0; o < O; ++o) sum[g][o] += of_a * of_b[o];
        }
    }
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g)
#pragma GCC unroll 4
        for (int o = 0; o < O; ++o) V::store(found + g * C + o * L, sum[g][o]);
}

template <typename T, int L, int G, int O>
void outer_rows(const T* a, const T* b, int64_t n, int64_t A, int64_t C, T* found) {
    int64_t r = 0;
    for (; r + G <= A; r += G) outer_block<T, L, G, O>(a + r, b, n, A, C, found + r * C);
    for (; r < A; ++r) outer_block<T, L, 1, O>(a + r, b, n, A, C, found + r * C);
}

template <typename T, int L>
void outer(const T* a, const T* b, int64_t n, int64_t A, int64_t C, T* found) {
    int64_t c = 0;
    for (; c + 4 * L <= C; c += 4 * L) outer_rows<T, L, 6, 4>(a, b + c, n, A, C, found + c);
    for (; c + 2 * L <= C; c += 2 * L) outer_rows<T, L, 8, 2>(a, b + c, n, A, C, found + c);
    for (; c < C; c += L) outer_rows<T, L, 16, 1>(a, b + c, n, A, C, found + c);
}

// The gradients of R rows of K taps, [R * K, C]: of the output's g and the padded input h.
template <typename T, int L, int R, int K>
void taps_gradient_rows(const Shape& s, const T* g, const T* h, T* found) {
    using V = Lanes<T, L>;
    const int64_t C = s.channels, row = s.padded_width() * C;
    for (int64_t c = 0; c < C; c += L) {
        typename V::Vector sum[R * K] = {};
        for (int64_t y = 0; y < s.out_height(); ++y)
            for (int64_t x = 0; x < s.out_width(); ++x) {
                const auto of_g = V::load(g + (y * s.out_width() + x) * C + c);
                const T* seen = h + y * s.stride * row + x * s.stride * C + c;
#pragma GCC unroll 3
                for (int i = 0; i < R; ++i)
#pragma GCC unroll 5
                    for (int j = 0; j < K; ++j) sum[i * K + j] += of_g * V::load(seen + (i * row + j * C) * s.dilation);
            }
#pragma GCC unroll 15
        for (int t = 0; t < R * K; ++t) V::store(found + t * C + c, sum[t]);
    }
}

template <typename T, int L>
void taps_gradient(const Shape& s, const T* g, const T* h, T* found) {
    const int64_t C = s.channels, K = s.kernel, row = s.dilation * s.padded_width() * C;
    if (K == 3) taps_gradient_rows<T, L, 3, 3>(s, g, h, found);
    else if (K == 5) {
        taps_gradient_rows<T, L, 3, 5>(s, g, h, found);
        taps_gradient_rows<T, L, 2, 5>(s, g, h + 3 * row, found + 15 * C);
    } else
        for (int64_t t = 0; t < K * K; ++t)
            taps_gradient_rows<T, L, 1, 1>(s, g, h + t / K * row + t % K * s.dilation * C, found + t * C);
}

// The gradient of the padded input where the stride is not 1: every pixel of g adds to what it saw.
template <typename T, int L>
void spread(const Shape& s, const T* g, const T* taps, T* h) {
    using V = Lanes<T, L>;
    const int64_t C = s.channels, row = s.padded_width() * C;
    std::memset(h, 0, s.padded_size() * sizeof(T));
    for (int64_t y = 0; y < s.out_height(); ++y)
        for (int64_t x = 0; x < s.out_width(); ++x)
            for (int64_t c = 0; c < C; c += L) {
                const auto of_g = V::load(g + (y * s.out_width() + x) * C + c);
                T* seen = h + y * s.stride * row + x * s.stride * C + c;
                for (int64_t i = 0; i < s.kernel; ++i)
                    for (int64_t j = 0; j < s.kernel; ++j) {
                        T* to = seen + i * s.dilation * row + j * s.dilation * C;
                        V::store(to, V::load(to) + of_g * V::load(taps + (i * s.kernel + j) * C + c));
                    }
            }
}

// [C, kernel, kernel] as [kernel * kernel, C]; reversed for the gradient of the input.
template <typename T>
Scratch<T> by_tap(const Shape& s, const T* kernels, bool reversed) {
    Scratch<T> taps(s.taps() * s.channels);
    for (int64_t t = 0; kernels != nullptr && t < s.taps(); ++t)
        for (int64_t c = 0; c < s.channels; ++c)
            taps[t * s.channels + c] = kernels[c * s.taps() + (reversed ? s.taps() - 1 - t : t)];
    return taps;
}

template <typename T>
Scratch<T> transposed(const T* matrix, int64_t rows, int64_t columns) {
    Scratch<T> found(rows * columns);
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) found[j * rows + i] = matrix[i * columns + j];
    return found;
}

// The sum of f(i) over n pixels, four at a time, so that additions need not wait for each other.
template <typename V, typename F>
inline V sum_of(int64_t n, const F& f) {
    V sum[4] = {};
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) sum[k] += f(i + k);
    }
    for (; i < n; ++i) sum[0] += f(i);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// Mean of every channel of an image's n pixels, and the sum of squares about it.
template <typename T, int L>
void image_moments(const T* y, int64_t n, int64_t C, T* mean, T* squares) {
    using V = Lanes<T, L>;
    for (int64_t c = 0; c < C; c += L) {
        using Vector = typename V::Vector;
        const auto m = sum_of<Vector>(n, [&](int64_t i) { return V::load(y + i * C + c); }) / V::all(T(n));
        const auto square = sum_of<Vector>(n, [&](int64_t i) {
            const auto d = V::load(y + i * C + c) - m;
            return d * d;
        });
        V::store(mean + c, m);
        V::store(squares + c, square);
    }
}

template <typename T, int L>
void forward(const Shape& s, const T* x, const T* x_moments, const T* kernels, const T* weight, double eps, T* y, T* moments,
             int threads) {
    const auto taps = by_tap(s, kernels, false);
    const auto matrix = transposed(weight, s.out_channels, s.channels);
    const int64_t C = s.out_channels, n = s.out_pixels();
    Scratch<T> of_images(moments == nullptr ? 0 : 2 * s.images * C);
    auto h_t = for_threads<T>(threads, s.padded_size()), z_t = for_threads<T>(threads, s.convolved_size());
#pragma omp parallel num_threads(threads)
    {
        auto &h = h_t[omp_get_thread_num()], &z = z_t[omp_get_thread_num()];
#pragma omp for schedule(dynamic)
        for (int64_t b = 0; b < s.images; ++b) {
            pad<T, L>(s, x + b * s.in_size(), x_moments, s.relu, h.data());
            const T* seen = convolved<T, L>(s, h.data(), kernels, taps.data(), z.data());
            T* of_image = y + b * s.out_size();
            product<T, L>(seen, matrix.data(), n, s.channels, C, of_image);
            if (moments != nullptr)
                image_moments<T, L>(of_image, n, C, &of_images[2 * b * C], &of_images[(2 * b + 1) * C]);
        }
    }
    if (moments == nullptr) return;
    for (int64_t c = 0; c < C; ++c) {  // n (m_b - mean)^2 is what an image adds to the squares about its own mean m_b
        double sum = 0, squares = 0;
        for (int64_t b = 0; b < s.images; ++b) sum += of_images[2 * b * C + c];
        const double mu = sum / s.images;
        for (int64_t b = 0; b < s.images; ++b) {
            const double d = of_images[2 * b * C + c] - mu;
            squares += of_images[(2 * b + 1) * C + c] + n * d * d;
        }
        const double var = squares / (double(n) * s.images);
        moments[c] = T(mu), moments[C + c] = T(var), moments[2 * C + c] = T(1 / std::sqrt(var + eps));
    }
}

// found[i] = sum over the images of what[b][i].
template <typename T>
void over_images(const Scratch<T>& what, int64_t images, int64_t size, T* found) {
    std::vector<double> sums(size);
    for (int64_t b = 0; b < images; ++b)
        for (int64_t i = 0; i < size; ++i) sums[i] += what[b * size + i];
    for (int64_t i = 0; i < size; ++i) found[i] = T(sums[i]);
}

// The gradient of y from that of p u, its sums with 1 and with u, and their count:
// g_y = (g - sum(g) / count - u sum(g u) / count) p / sigma.
template <typename T, int L>
void norm_gradient(const T* g, const T* y, const T* moments, const T* g_sum, const T* gu_sum, T count, T p, int64_t n,
                   int64_t C, T* g_y) {
    using V = Lanes<T, L>;
    for (int64_t c = 0; c < C; c += L) {
        const auto mu = V::load(moments + c), inv = V::load(moments + 2 * C + c), scale = inv * p;
        const auto of_g = V::load(g_sum + c) / count, of_gu = V::load(gu_sum + c) / count;
        for (int64_t i = c; i < n * C; i += C) {
            const auto u = (V::load(y + i) - mu) * inv;
            V::store(g_y + i, (V::load(g + i) - of_g - u * of_gu) * scale);
        }
    }
}

// g where u > 0, into g_x, and its sums with 1 and with u; from one row of g to the next it is ``row`` numbers.
template <typename T, int L>
void relu_gradient(const Shape& s, const T* g, int64_t row, const T* x, const T* moments, T* g_x, T* sums) {
    using V = Lanes<T, L>;
    const int64_t C = s.channels;
    for (int64_t c = 0; c < C; c += L) {
        const auto mu = V::load(moments + c), inv = V::load(moments + 2 * C + c);
        typename V::Vector of_g[4] = {}, of_gu[4] = {};
        const auto pixel = [&](int64_t y, int64_t x_, int k) {
            const int64_t i = x_ * C + c, at = y * s.width * C + i;
            const auto u = (V::load(x + at) - mu) * inv;
            const auto value = u <= 0 ? V::all(0) : V::load(g + y * row + i);
            V::store(g_x + at, value);
            of_g[k] += value, of_gu[k] += value * u;
        };
        for (int64_t y = 0; y < s.height; ++y) {
            int64_t i = 0;
            for (; i + 4 <= s.width; i += 4) {
#pragma GCC unroll 4
                for (int k = 0; k < 4; ++k) pixel(y, i + k, k);
            }
            for (; i < s.width; ++i) pixel(y, i, 0);
        }
        V::store(sums + c, (of_g[0] + of_g[1]) + (of_g[2] + of_g[3]));
        V::store(sums + C + c, (of_gu[0] + of_gu[1]) + (of_gu[2] + of_gu[3]));
    }
}

// g, where x > 0 if there is a ReLU, into g_x or added to it.
template <typename T, int L>
void add_rows(const Shape& s, const T* g, int64_t row, const T* x, bool add, T* g_x) {
    using V = Lanes<T, L>;
    const int64_t size = s.width * s.channels;
    for (int64_t y = 0; y < s.height; ++y)
        for (int64_t i = 0; i < size; i += L) {
            T* to = g_x + y * size + i;
            auto value = V::load(g + y * row + i);
            if (s.relu) value = V::load(x + y * size + i) <= 0 ? V::all(0) : value;
            V::store(to, add ? V::load(to) + value : value);
        }
}

template <typename T>
struct Backward {
    const T *g, *y, *moments, *g_sum, *gu_sum;  // of the output p u
    double p;
    const T *x, *x_moments, *kernels, *weight;
    T *g_x, *x_sums, *g_kernels, *g_weight;     // what is found; null where it is not wanted
    int64_t add;                                // to what is in g_x
};

template <typename T, int L>
void backward(const Shape& s, const Backward<T>& a, int threads) {
    const int64_t C = s.channels, n = s.out_pixels(), of_kernels = a.g_kernels == nullptr ? 0 : s.taps() * C;
    const int64_t of_weight = s.out_channels * C;
    const auto taps = by_tap(s, a.kernels, false), reversed = by_tap(s, a.kernels, true);
    const bool weights = a.g_weight != nullptr;
    const T count = T(s.images * n);
    Scratch<T> x_sums(a.x_sums == nullptr ? 0 : s.images * 2 * C);
    Scratch<T> kernels_b(weights ? s.images * of_kernels : 0), weights_b(weights ? s.images * of_weight : 0);
    auto g_y_t = for_threads<T>(threads, s.out_size()), g_z_t = for_threads<T>(threads, s.convolved_size());
    auto h_t = for_threads<T>(threads, s.padded_size()), g_h_t = for_threads<T>(threads, s.in_size());
    auto z_t = for_threads<T>(threads, weights ? s.convolved_size() : 0);
#pragma omp parallel num_threads(threads)
    {
        const int t = omp_get_thread_num();
        auto &g_y = g_y_t[t], &g_z = g_z_t[t], &h = h_t[t], &g_h = g_h_t[t], &z = z_t[t];
#pragma omp for schedule(dynamic)
        for (int64_t b = 0; b < s.images; ++b) {
            const T* x = a.x + b * s.in_size();
            norm_gradient<T, L>(a.g + b * s.out_size(), a.y + b * s.out_size(), a.moments, a.g_sum, a.gu_sum, count, T(a.p), n,
                                s.out_channels, g_y.data());
            product<T, L>(g_y.data(), a.weight, n, s.out_channels, C, g_z.data());
            if (weights) {
                pad<T, L>(s, x, a.x_moments, s.relu, h.data());
                const T* seen = convolved<T, L>(s, h.data(), a.kernels, taps.data(), z.data());
                outer<T, L>(g_y.data(), seen, n, s.out_channels, C, &weights_b[b * of_weight]);
                if (of_kernels > 0) taps_gradient<T, L>(s, g_z.data(), h.data(), &kernels_b[b * of_kernels]);
            }
            if (a.g_x == nullptr) continue;
            const T* of_h = g_h.data();
            int64_t row = s.width * C;
            if (a.kernels == nullptr) of_h = g_z.data();
            else if (s.stride == 1) {
                pad<T, L>(s, g_z.data(), nullptr, false, h.data());
                convolve<T, L>(s, h.data(), reversed.data(), g_h.data(), 1, s.height, s.width);
            } else {
                spread<T, L>(s, g_z.data(), taps.data(), h.data());
                row = s.padded_width() * C;
                of_h = h.data() + s.margin() * (row + C);
            }
            T* g_x = a.g_x + b * s.in_size();
            if (a.x_moments == nullptr) add_rows<T, L>(s, of_h, row, x, a.add, g_x);
            else relu_gradient<T, L>(s, of_h, row, x, a.x_moments, g_x, &x_sums[2 * b * C]);
        }
    }
    if (a.x_sums != nullptr) over_images(x_sums, s.images, 2 * C, a.x_sums);
    if (!weights) return;
    over_images(weights_b, s.images, of_weight, a.g_weight);
    if (of_kernels == 0) return;
    Scratch<T> found(of_kernels);
    over_images(kernels_b, s.images, of_kernels, found.data());
    for (int64_t t = 0; t < s.taps(); ++t)
        for (int64_t c = 0; c < C; ++c) a.g_kernels[c * s.taps() + t] = found[t * C + c];
}

constexpr int64_t SPAN = 4096;  // numbers of a map at a time

// out = sum_k p_k (y_k - mean_k) / sigma_k + sum_j p_j m_j: moments are [K, 3, C].
template <typename T, int L>
void mixed(const T* const* maps, int64_t own, int64_t count, const T* moments, const T* p, int64_t pixels, int64_t C, T* out,
           int threads) {
    using V = Lanes<T, L>;
    const int64_t span = std::max<int64_t>(1, SPAN / C);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t first = 0; first < pixels; first += span) {
        const int64_t last = std::min(pixels, first + span);
        for (int64_t k = 0; k < count; ++k)
            for (int64_t c = 0; c < C; c += L) {
                const auto mu = k < own ? V::load(moments + 3 * k * C + c) : V::all(0);
                const auto by = k < own ? V::load(moments + (3 * k + 2) * C + c) * p[k] : V::all(p[k]);
                for (int64_t i = first * C + c; i < last * C; i += C) {
                    const auto term = (V::load(maps[k] + i) - mu) * by;
                    V::store(out + i, k ? V::load(out + i) + term : term);
                }
            }
    }
}

// For the gradient g of a mixture: [1 + K + J, C] sums over all pixels, of g, of g u_k, and of g m_j.
template <typename T, int L>
void mixed_sums(const T* g, const T* const* maps, int64_t own, int64_t count, const T* moments, int64_t images, int64_t n,
                int64_t C, T* sums, int threads) {
    using V = Lanes<T, L>;
    const int64_t size = (1 + count) * C;
    Scratch<T> of_images(images * size);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t b = 0; b < images; ++b)
        for (int64_t c = 0; c < C; c += L)
            for (int64_t k = -1; k < count; ++k) {
                const bool norm = k >= 0 && k < own;
                const auto mu = norm ? V::load(moments + 3 * k * C + c) : V::all(0);
                const auto inv = norm ? V::load(moments + (3 * k + 2) * C + c) : V::all(1);
                const T *of_g = g + b * n * C + c, *map = k < 0 ? nullptr : maps[k] + b * n * C + c;
                const auto sum = sum_of<typename V::Vector>(n, [&](int64_t i) {
                    const auto value = V::load(of_g + i * C);
                    return map == nullptr ? value : value * ((V::load(map + i * C) - mu) * inv);
                });
                V::store(&of_images[b * size + (1 + k) * C + c], sum);
            }
    over_images(of_images, images, size, sums);
}

// out_j = sum_r p[j][r] g_r, all of the same size.
template <typename T, int L>
void scaled_sums(const T* const* g, int64_t edges, const T* p, int64_t count, int64_t size, T* const* out, int threads) {
    using V = Lanes<T, L>;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t first = 0; first < size; first += SPAN) {
        const int64_t last = std::min(size, first + SPAN);
        for (int64_t j = 0; j < count; ++j)
            for (int64_t r = 0; r < edges; ++r) {
                const auto by = V::all(p[j * edges + r]);
                for (int64_t i = first; i < last; i += L) {
                    const auto term = V::load(g[r] + i) * by;
                    V::store(out[j] + i, r ? V::load(out[j] + i) + term : term);
                }
            }
    }
}

}  // namespace

// Returns whether memory was lacking. Calls F with the greatest number of lanes that divides the channels; (a | b) is divided by a power of two if both are.
#define DISPATCH(channels, F, T, ...)                        \
    try {                                                    \
        if ((channels) % 16 == 0) F<T, 16>(__VA_ARGS__);     \
        else if ((channels) % 8 == 0) F<T, 8>(__VA_ARGS__);  \
        else if ((channels) % 4 == 0) F<T, 4>(__VA_ARGS__);  \
        else F<T, 1>(__VA_ARGS__);                           \
        return 0;                                            \
    } catch (const std::bad_alloc&) {                        \
        return 1;                                            \
    }

#define PASSES(NAME, T)                                                                                                  \
    int forward_##NAME(const Shape* s, const T* x, const T* x_moments, const T* kernels, const T* weight, double eps,   \
                        T* y, T* moments, int threads) {                                                                 \
        DISPATCH(s->channels | s->out_channels, forward, T, *s, x, x_moments, kernels, weight, eps, y, moments, threads)                   \
    }                                                                                                                    \
    int backward_##NAME(const Shape* s, const Backward<T>* a, int threads) {                                            \
        DISPATCH(s->channels | s->out_channels, backward, T, *s, *a, threads)                                                              \
    }                                                                                                                    \
    int mixed_##NAME(const T* const* maps, int64_t own, int64_t count, const T* moments, const T* p, int64_t pixels,    \
                      int64_t C, T* out, int threads) {                                                                  \
        DISPATCH(C, mixed, T, maps, own, count, moments, p, pixels, C, out, threads)                                     \
    }                                                                                                                    \
    int mixed_sums_##NAME(const T* g, const T* const* maps, int64_t own, int64_t count, const T* moments,               \
                           int64_t images, int64_t n, int64_t C, T* sums, int threads) {                                 \
        DISPATCH(C, mixed_sums, T, g, maps, own, count, moments, images, n, C, sums, threads)                            \
    }                                                                                                                    \
    int scaled_sums_##NAME(const T* const* g, int64_t edges, const T* p, int64_t count, int64_t size, T* const* out,    \
                            int threads) {                                                                               \
        DISPATCH(size, scaled_sums, T, g, edges, p, count, size, out, threads)                                           \
    }

extern "C" {
PASSES(f32, float)
PASSES(f64, double)
}
