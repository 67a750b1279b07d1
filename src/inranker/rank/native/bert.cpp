// BERT rankers in int8 on one core, many sequences end to end: what `export/int8.py` writes, computed as it says.
//
// One source for all instruction sets; the compiler's flags choose. A sequence's result does not depend, to the last
// bit, on what is computed with it: integers are exact, and each row of floats is worked on in one order.

#include <algorithm>
#include <memory>
#include <new>

#include "attention.h"

#if defined(__AMX_INT8__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

struct Norm {
    const float *scale, *bias;
};

struct Layer {
    Weight heads;  // queries, keys and values of the first head, of the second, ...
    Weight out, inner, outer;
    Norm attention_norm, norm;
};

// Of the last layer only the first token of each sequence is asked for; keys and values are of all tokens.
struct LastLayer {
    Weight heads;  // keys and values of the first head, of the second, ...
    KeptWeight query, out, inner, outer;
    Norm attention_norm, norm;
};

struct Bert {
    int32_t size, head_size, inner_size, layers, activation, labels;
    float epsilon;
    const int8_t* words;       // [vocabulary, size]
    const float* word_scales;  // [vocabulary, size / 64]
    const float* types;        // [types, size]
    const float* positions;    // [longest, size]
    Norm norm;
    const Layer* layer;  // all but the last
    LastLayer last;
    KeptWeight pooler;
    const float *classifier, *classifier_bias;  // [labels, size], [labels]
};

namespace {

// Rows that go through a feed-forward layer at a time: their values stay in the core's cache.
constexpr int BLOCK = 64 / TILE_ROWS * TILE_ROWS;

// Buffers of a thread, kept between calls.
struct Space {
    std::unique_ptr<float[]> memory;
    size_t size = 0, used = 0;

    void reserve(size_t floats) {
        used = 0;
        if (size < floats) {
            memory.reset();
            memory.reset(new float[floats + 16]);
            size = floats;
        }
    }
    float* take(size_t floats) {
        float* base = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory.get()) + 63) / 64 * 64);
        float* start = base + used;
        used += (floats + 15) / 16 * 16;
        return start;
    }
    uint8_t* take_bytes(size_t bytes) { return reinterpret_cast<uint8_t*>(take((bytes + 3) / 4)); }
};

thread_local Space space;

class Run {
  public:
    Run(const Bert& model, const int32_t* starts, int sequences)
        : m(model), starts(starts), sequences(sequences), rows(starts[sequences]) {
        int longest = 0;
        for (int s = 0; s < sequences; s++) longest = std::max(longest, starts[s + 1] - starts[s]);
        const size_t all = up(rows, TILE_ROWS), part = up(std::max(BLOCK, sequences), TILE_ROWS);
        const size_t head = 3 * m.head_size, attention = attention_space(longest, m.head_size);
        space.reserve(all * (2 * m.size + m.size / 4 + 1 + head) + part * (m.inner_size * 5 / 4 + m.size * 9 / 4 + 1) +
                      attention + 64 * 16);
        x = space.take(all * m.size);
        context = space.take(all * m.size);
        codes = space.take_bytes(all * m.size);
        scales = space.take(all);
        head_values = space.take(all * head);
        inner = space.take(part * m.inner_size);
        block = space.take(part * m.size);
        part_codes = space.take_bytes(part * std::max(m.size, m.inner_size));
        part_scales = space.take(part);
        head_space = space.take(attention);
    }

    void logits(const int32_t* ids, const int32_t* types, float* out) {
        embed(ids, types);
        for (int i = 0; i + 1 < m.layers; i++) {
            attend_all(m.layer[i]);
            feed_forward(m.layer[i]);
        }
        last_layer(m.last);
        classify(out);
    }

  private:
    void embed(const int32_t* ids, const int32_t* types) {
        for (int s = 0; s < sequences; s++)
            for (int t = starts[s]; t < starts[s + 1]; t++) {
                float* row = x + (size_t)t * m.size;
                const int8_t* word = m.words + (size_t)ids[t] * m.size;
                const float* scale = m.word_scales + (size_t)ids[t] * (m.size / 64);
                const float* type = m.types + (size_t)types[t] * m.size;
                const float* position = m.positions + (size_t)(t - starts[s]) * m.size;
                for (int i = 0; i < m.size; i += W)
                    at(row + i) = floats_of(word + i) * scale[i / 64] + at(type + i) + at(position + i);
                layer_norm(row, m.size, m.norm.scale, m.norm.bias, m.epsilon);
            }
    }

    // Codes of rows after rotation; `y` is left rotated.
    static void rotate_and_quantize(float* y, int size, uint8_t* codes, float* scale) {
        for (int i = 0; i < size; i += 64) rotate64(y + i);
        *scale = quantize(y, size, codes);
    }

    void quantize_rows() {
        for (int t = 0; t < rows; t++) {
            std::memcpy(block, x + (size_t)t * m.size, m.size * sizeof(float));
            rotate_and_quantize(block, m.size, codes + (size_t)t * m.size, scales + t);
        }
    }

    void attend_all(const Layer& layer) {
        quantize_rows();
        const int d = m.head_size, stride = 3 * d;
        for (int h = 0; h < m.size / d; h++) {
            product(codes, scales, rows, layer.heads, h * stride, stride, head_values, stride);
            for (int s = 0; s < sequences; s++) {
                const float* q = head_values + (size_t)starts[s] * stride;
                attend(q, q + d, q + 2 * d, stride, starts[s + 1] - starts[s], d,
                       context + (size_t)starts[s] * m.size + h * d, m.size, head_space);
            }
        }
    }

    // x <- the rest of a layer.
    void feed_forward(const Layer& layer) {
        for (int first = 0; first < rows; first += BLOCK) {
            const int n = std::min(BLOCK, rows - first);
            float* mine = x + (size_t)first * m.size;
            for (int i = 0; i < n; i++)
                part_scales[i] =
                    quantize(context + (size_t)(first + i) * m.size, m.size, part_codes + (size_t)i * m.size);
            product(part_codes, part_scales, n, layer.out, 0, m.size, block, m.size);
            add_and_norm(mine, n, layer.attention_norm);
            for (int i = 0; i < n; i++)
                rotate_and_quantize(block + (size_t)i * m.size, m.size, part_codes + (size_t)i * m.size,
                                    part_scales + i);
            for (int column = 0; column < m.inner_size; column += 64) {
                product(part_codes, part_scales, n, layer.inner, column, 64, inner + column, m.inner_size);
                for (int i = 0; i < n; i++) {
                    float* values = inner + (size_t)i * m.inner_size + column;
                    activate(values, 64, m.activation);
                    rotate64(values);
                }
            }
            for (int i = 0; i < n; i++)
                part_scales[i] =
                    quantize(inner + (size_t)i * m.inner_size, m.inner_size, part_codes + (size_t)i * m.inner_size);
            product(part_codes, part_scales, n, layer.outer, 0, m.size, block, m.size);
            add_and_norm(mine, n, layer.norm);
        }
    }

    // mine <- norm(mine + block), block <- the same.
    void add_and_norm(float* mine, int n, const Norm& norm) {
        for (int i = 0; i < n; i++) {
            float *row = mine + (size_t)i * m.size, *other = block + (size_t)i * m.size;
            for (int j = 0; j < m.size; j += W) at(row + j) += at(other + j);
            layer_norm(row, m.size, norm.scale, norm.bias, m.epsilon);
            std::memcpy(other, row, m.size * sizeof(float));
        }
    }

    // Leaves its result in `block`, a row a sequence.
    void last_layer(const LastLayer& layer) {
        quantize_rows();
        for (int s = 0; s < sequences; s++)  // a sequence's number is at most its start, so none is overwritten unread
            std::memmove(x + (size_t)s * m.size, x + (size_t)starts[s] * m.size, m.size * sizeof(float));
        kept_product(x, sequences, layer.query, block);
        const int d = m.head_size, stride = 2 * d;
        for (int h = 0; h < m.size / d; h++) {
            product(codes, scales, rows, layer.heads, h * stride, stride, head_values, stride);
            for (int s = 0; s < sequences; s++) {
                const size_t mine = (size_t)s * m.size + h * d;
                const float* k = head_values + (size_t)starts[s] * stride;
                attend_one(block + mine, k, k + d, stride, starts[s + 1] - starts[s], d, context + mine, head_space);
            }
        }
        kept_product(context, sequences, layer.out, block);
        add_and_norm(x, sequences, layer.attention_norm);
        kept_product(x, sequences, layer.inner, inner);
        activate(inner, (size_t)sequences * m.inner_size, m.activation);
        kept_product(inner, sequences, layer.outer, block);
        add_and_norm(x, sequences, layer.norm);
    }

    void classify(float* out) {
        kept_product(block, sequences, m.pooler, x);
        for (int s = 0; s < sequences; s++) {
            float* row = x + (size_t)s * m.size;
            for (int j = 0; j < m.size; j++) row[j] = std::tanh(row[j]);
            for (int l = 0; l < m.labels; l++) {
                Vec total{};
                for (int j = 0; j < m.size; j += W) total += at(row + j) * at(m.classifier + (size_t)l * m.size + j);
                out[s * m.labels + l] = sum(total) + m.classifier_bias[l];
            }
        }
    }

    const Bert& m;
    const int32_t* starts;
    const int sequences, rows;
    float *x, *context, *scales, *head_values, *inner, *block, *part_scales, *head_space;
    uint8_t *codes, *part_codes;
};

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// Whether the system lets this process use what the library was built for; 0 is yes.
EXPORT int inranker_bert_start() {
#if defined(__AMX_INT8__)
    constexpr int ASK = 0x1023, TILES = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA: Linux keeps no tiles for who did not ask
    return syscall(SYS_arch_prctl, ASK, TILES) != 0;
#else
    return 0;
#endif
}

// ids, types: [rows]; starts: [sequences + 1], where each sequence begins, and rows; logits: [sequences, labels].
// Returns 0, or 1 where memory ran out. Any number of threads may call it with one model.
EXPORT int inranker_bert_run(const Bert* model, const int32_t* ids, const int32_t* types, const int32_t* starts,
                             int32_t sequences, float* logits) {
    try {
#if defined(__AMX_INT8__)
        static const TileConfig config;
        _tile_loadconfig(&config);
#endif
        Run(*model, starts, sequences).logits(ids, types, logits);
#if defined(__AMX_INT8__)
        _tile_release();
#endif
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}