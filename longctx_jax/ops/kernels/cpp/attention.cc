// FlashAttention (arXiv:2205.14135) on the CPU that compiles it, in float32;
// called by cpu.py through XLA's foreign function interface.
//
// A tile of scores lies as [key][query], so that queries fill the lanes of
// registers: its softmax, over keys, needs nothing from one lane to the next,
// and all seven products of a tile are the one of products.h, which takes keys
// and values as they lie. Queries are turned once for all of their tiles.
//
// Every sum is made in an order that shapes decide, whichever thread comes
// first: the same inputs give the same bits.

#include <cmath>
#include <cstdlib>

#include "products.h"
#include "tasks.h"
#include "tiles.h"

namespace ffi = xla::ffi;

namespace {

using Floats = ffi::Buffer<ffi::F32>;
using Integers = ffi::Buffer<ffi::S32>;

constexpr float kMasked = -1e30f;  // as blockwise_attention.MASKED
constexpr float kLog2E = 1.44269504088896341f;
constexpr int kScores = kTile * kTile;

// Sizes, and where heads lie: queries as [B, T, N, H]; keys and values as
// [B, S, K, H] or, in a cache, as [B * K, H, S] and [B * K, S, H].
struct Shapes {
  int64_t B, T, N, S, K;
  int H;
  bool is_cache;

  Shapes(const Floats& q, const Floats& k, const Integers& key_index,
         bool is_cache)
      : B(q.dimensions()[0]),
        T(q.dimensions()[1]),
        N(q.dimensions()[2]),
        S(key_index.dimensions()[0]),
        K(is_cache ? k.dimensions()[0] / B : k.dimensions()[2]),
        H(static_cast<int>(q.dimensions()[3])),
        is_cache(is_cache) {}

  // Heads before head n of query t: of numbers as well as, times H, of q.
  int64_t Query(int64_t b, int64_t t, int64_t n) const {
    return (b * T + t) * N + n;
  }
  // Key s and those after it, of a head: [keys, H].
  Matrix Keys(const Floats& k, int64_t b, int64_t head, int64_t s) const {
    const float* data = k.typed_data();
    if (is_cache) return {data + (b * K + head) * H * S + s, 1, S};
    return {data + ((b * S + s) * K + head) * H, K * H, 1};
  }
  Matrix Values(const Floats& v, int64_t b, int64_t head, int64_t s) const {
    const float* data = v.typed_data();
    if (is_cache) return {data + ((b * K + head) * S + s) * H, H, 1};
    return {data + ((b * S + s) * K + head) * H, K * H, 1};
  }
};

// Memory of a task, freed with it; its parts lie on lines of the cache.
class Scratch {
 public:
  explicit Scratch(int64_t floats)
      : memory_(std::aligned_alloc(64, (floats * 4 + 63) / 64 * 64)),
        next_(static_cast<float*>(memory_)) {}
  ~Scratch() { std::free(memory_); }
  Scratch(const Scratch&) = delete;
  float* Take(int64_t floats) { return (next_ += floats) - floats; }

 private:
  void* memory_;
  float* next_;
};

// [count, H] of a head, its rows `row` apart, to [H, kTile] times `factor`.
// Lanes without a query are 0: nothing is taken from them, but what was left
// there by others might be numbers that are slow to compute with.
void Turn(const float* from, int64_t row, int count, int H, float factor,
          float* to) {
  if (count < kTile) std::fill_n(to, H * kTile, 0.0f);
  for (int t = 0; t < count; ++t)
    for (int h = 0; h < H; ++h)
      to[h * kTile + t] = from[t * row + h] * factor;
}

// And back: [H, kTile] to [count, H], query t times factors[t].
void TurnBack(const float* from, int64_t row, int count, int H,
              const float* factors, float* to) {
  for (int t = 0; t < count; ++t)
    for (int h = 0; h < H; ++h)
      to[t * row + h] = from[h * kTile + t] * factors[t];
}

// Rows of `length`, without what lies between them.
void Gather(const float* from, int64_t row, int count, int length, float* to) {
  for (int i = 0; i < count; ++i)
    std::copy_n(from + i * row, length, to + i * length);
}

// The softmax of a block of queries, one tile after the other.
struct Softmax {
  // The floor keeps 2^(kMasked - largest) at 0 where all is masked.
  Softmax() { std::fill_n(largest, kVectors, Vector{} + 0.5f * kMasked); }

  // Makes weights of scores; `sums` [H, kTile] are of the tiles before.
  void Add(int num_keys, int H, float* scores, float* sums) {
    for (int w = 0; w < kVectors; ++w) {
      float* column = scores + w * kLanes;
      Vector now = largest[w];
      for (int s = 0; s < num_keys; ++s)
        now = Max(now, Load(column + s * kTile));
      const Vector fade = Exp2(largest[w] - now);
      const Ints is_larger = now > largest[w];
      int any = 0;
      for (int lane = 0; lane < kLanes; ++lane) any |= is_larger[lane];
      if (any) {
        total[w] *= fade;
        for (int h = 0; h < H; ++h) {
          float* sum = sums + h * kTile + w * kLanes;
          Store(sum, Load(sum) * fade);
        }
      }
      for (int s = 0; s < num_keys; ++s) {
        const Vector weight = Exp2(Load(column + s * kTile) - now);
        Store(column + s * kTile, weight);
        total[w] += weight;
      }
      largest[w] = now;
    }
  }

  Vector largest[kVectors], total[kVectors] = {};  // logarithms are of base 2
};

ffi::Error Forward(ffi::ThreadPool pool, float scale, bool is_cache, Floats q,
                   Floats k, Floats v, Integers segment_ids, Integers index,
                   Integers key_segment_ids, Integers key_index,
                   ffi::Result<Floats> out, ffi::Result<Floats> lse) {
  const Shapes shapes(q, k, key_index, is_cache);
  const int64_t B = shapes.B, N = shapes.N;
  const int H = shapes.H;
  const Place queries(segment_ids.typed_data(), index.typed_data(), B,
                      shapes.T);
  const Place keys(key_segment_ids.typed_data(), key_index.typed_data(), B,
                   shapes.S);
  Tasks::Run(pool, queries.num_blocks() * B * N, [&](int64_t task) {
    // Late queries first: causality gives them the most to do.
    const int64_t block = queries.num_blocks() - 1 - task / (B * N);
    const int64_t b = task / N % B, head = task % N;
    const int64_t kv_head = head / (N / shapes.K);
    const int64_t at = shapes.Query(b, block * kTile, head);
    const int count = queries.Count(block);
    const Extent& extent = queries.Block(b, block);
    const Mask mask(queries, b, block);
    Scratch scratch(3 * H * kTile + kScores);
    float* own_keys = scratch.Take(H * kTile);
    float* q_turned = scratch.Take(H * kTile);
    float* sums = scratch.Take(H * kTile);
    float* scores = scratch.Take(kScores);
    Turn(q.typed_data() + at * H, N * H, count, H, scale * kLog2E, q_turned);
    std::fill_n(sums, H * kTile, 0.0f);
    Softmax softmax;
    for (int64_t i = keys.NextNeeded(extent, b, 0); i < keys.num_blocks();
         i = keys.NextNeeded(extent, b, i + 1)) {
      const auto [first, num_keys] = keys.Needed(extent, b, i);
      Matrix own_k = shapes.Keys(k, b, kv_head, first);
      if (is_cache) {
        // Rows of a cache are so far apart that they drive each other out of
        // the processor's.
        Gather(own_k.data, shapes.S, H, num_keys, own_keys);
        own_k = {own_keys, 1, num_keys};
      }
      Multiply<false>(num_keys, kTile, H, own_k, q_turned, kTile, scores,
                      kTile);
      if (!AllAttend(extent, keys.Block(b, i)))
        for (int s = 0; s < num_keys; ++s)
          for (int w = 0; w < kVectors; ++w) {
            float* score = scores + s * kTile + w * kLanes;
            Store(score, mask(keys, b, first + s, w) ? Load(score)
                                                     : Vector{} + kMasked);
          }
      softmax.Add(num_keys, H, scores, sums);
      Multiply<true>(H, kTile, num_keys,
                     shapes.Values(v, b, kv_head, first).Transposed(), scores,
                     kTile, sums, kTile);
    }
    float factors[kTile];
    for (int t = 0; t < count; ++t) {
      const float total = softmax.total[t / kLanes][t % kLanes];
      const float largest = softmax.largest[t / kLanes][t % kLanes];
      factors[t] = total > 0 ? 1 / total : 0.0f;
      lse->typed_data()[at + t * N] =
          total > 0 ? (largest + std::log2(total)) / kLog2E : kMasked;
    }
    TurnBack(sums, N * H, count, H, factors, out->typed_data() + at * H);
  });
  return ffi::Error::Success();
}

// dk and dv are [parts, B, S, K, H]: each part of a head takes every so many
// of its blocks of queries, and adds up what they send.
ffi::Error Backward(ffi::ThreadPool pool, float scale, Floats q, Floats k,
                    Floats v, Floats d_out, Floats lse, Floats delta,
                    Integers segment_ids, Integers index,
                    Integers key_segment_ids, Integers key_index,
                    ffi::Result<Floats> dq, ffi::Result<Floats> dk,
                    ffi::Result<Floats> dv) {
  const Shapes shapes(q, k, key_index, /*is_cache=*/false);
  const int64_t B = shapes.B, N = shapes.N, S = shapes.S, K = shapes.K;
  const int64_t parts = dk->dimensions()[0], G = N / K;
  const int H = shapes.H;
  const Place queries(segment_ids.typed_data(), index.typed_data(), B,
                      shapes.T);
  const Place keys(key_segment_ids.typed_data(), key_index.typed_data(), B, S);
  Tasks::Run(pool, B * K * parts, [&](int64_t task) {
    const int64_t part = task % parts, kv_head = task / parts % K;
    const int64_t b = task / parts / K, kv_row = K * H;
    const int64_t kv_at = ((part * B + b) * S * K + kv_head) * H;
    float* own_dk = dk->typed_data() + kv_at;
    float* own_dv = dv->typed_data() + kv_at;
    for (int64_t s = 0; s < S; ++s) {
      std::fill_n(own_dk + s * kv_row, H, 0.0f);
      std::fill_n(own_dv + s * kv_row, H, 0.0f);
    }
    Scratch scratch(5 * H * kTile + 2 * kScores);
    float* q_turned = scratch.Take(H * kTile);
    float* d_out_turned = scratch.Take(H * kTile);
    float* dq_turned = scratch.Take(H * kTile);
    float* q_rows = scratch.Take(H * kTile);
    float* d_out_rows = scratch.Take(H * kTile);
    float* weights = scratch.Take(kScores);
    float* d_scores = scratch.Take(kScores);
    for (int64_t turn = part; turn < queries.num_blocks() * G; turn += parts) {
      const int64_t block = turn / G, head = kv_head * G + turn % G;
      const int64_t at = shapes.Query(b, block * kTile, head);
      const int count = queries.Count(block);
      const Extent& extent = queries.Block(b, block);
      const Mask mask(queries, b, block);
      const float* own_q = q.typed_data() + at * H;
      const float* own_d_out = d_out.typed_data() + at * H;
      Turn(own_q, N * H, count, H, scale * kLog2E, q_turned);
      Turn(own_d_out, N * H, count, H, 1.0f, d_out_turned);
      Gather(own_q, N * H, count, H, q_rows);
      Gather(own_d_out, N * H, count, H, d_out_rows);
      std::fill_n(dq_turned, H * kTile, 0.0f);
      alignas(Vector) float lse2[kTile] = {}, deltas[kTile] = {};
      for (int t = 0; t < count; ++t) {
        lse2[t] = lse.typed_data()[at + t * N] * kLog2E;
        deltas[t] = delta.typed_data()[at + t * N];
      }
      for (int64_t i = keys.NextNeeded(extent, b, 0); i < keys.num_blocks();
           i = keys.NextNeeded(extent, b, i + 1)) {
        const auto [first, num_keys] = keys.Needed(extent, b, i);
        const Matrix own_k = shapes.Keys(k, b, kv_head, first);
        const Matrix own_v = shapes.Values(v, b, kv_head, first);
        const bool is_whole = AllAttend(extent, keys.Block(b, i));
        Multiply<false>(num_keys, kTile, H, own_k, q_turned, kTile, weights,
                        kTile);
        Multiply<false>(num_keys, kTile, H, own_v, d_out_turned, kTile,
                        d_scores, kTile);
        for (int s = 0; s < num_keys; ++s)
          for (int w = 0; w < kVectors; ++w) {
            float* weight = weights + s * kTile + w * kLanes;
            float* d_score = d_scores + s * kTile + w * kLanes;
            // Of pairs that do not attend it may be anything.
            Vector x = Exp2(Load(weight) - Load(lse2 + w * kLanes));
            if (!is_whole) x = mask(keys, b, first + s, w) ? x : Vector{};
            Store(weight, x);
            Store(d_score, x * (Load(d_score) - Load(deltas + w * kLanes)));
          }
        Multiply<true>(H, kTile, num_keys, own_k.Transposed(), d_scores, kTile,
                       dq_turned, kTile);
        Multiply<true>(num_keys, H, count, {weights, kTile, 1}, d_out_rows, H,
                       own_dv + first * kv_row, kv_row);
        Multiply<true>(num_keys, H, count, {d_scores, kTile, 1}, q_rows, H,
                       own_dk + first * kv_row, kv_row);
      }
      float factors[kTile];
      std::fill_n(factors, kTile, scale);
      TurnBack(dq_turned, N * H, count, H, factors, dq->typed_data() + at * H);
    }
    for (int64_t s = 0; s < S; ++s)
      for (int h = 0; h < H; ++h) own_dk[s * kv_row + h] *= scale;
  });
  return ffi::Error::Success();
}

template <typename Binding>
auto QueriesKeysValues(Binding binding) {
  return std::move(binding).template Arg<Floats>().template Arg<Floats>()
      .template Arg<Floats>();
}

template <typename Binding>
auto Places(Binding binding) {
  return std::move(binding).template Arg<Integers>().template Arg<Integers>()
      .template Arg<Integers>().template Arg<Integers>();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    AttentionForward, Forward,
    Places(QueriesKeysValues(ffi::Ffi::Bind()
                                 .Ctx<ffi::ThreadPool>()
                                 .Attr<float>("scale")
                                 .Attr<bool>("is_cache")))
        .Ret<Floats>()
        .Ret<Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    AttentionBackward, Backward,
    Places(QueriesKeysValues(ffi::Ffi::Bind()
                                 .Ctx<ffi::ThreadPool>()
                                 .Attr<float>("scale"))
               .Arg<Floats>()
               .Arg<Floats>()
               .Arg<Floats>())
        .Ret<Floats>()
        .Ret<Floats>()
        .Ret<Floats>());
