// Which tiles of scores are needed, and which pairs of them attend: the rules
// of ops/tiles.py and ops/attention.py.

#ifndef LONGCTX_JAX_TILES_H_
#define LONGCTX_JAX_TILES_H_

#include <algorithm>
#include <climits>
#include <cstdint>
#include <vector>

#include "products.h"

constexpr int kTile = TILE_LEN;  // queries of a tile, and keys; from cpu.py
constexpr int kVectors = kTile / kLanes;  // that hold a number per query
static_assert(kTile % kLanes == 0);

// What of some tokens decides which others they may have to do with.
struct Extent {
  int min_segment = INT_MAX, max_segment = 0;  // of real tokens
  int min_index = INT_MAX, max_index = -1;
  bool has_padding = false;

  void Add(const Extent& other) {
    min_segment = std::min(min_segment, other.min_segment);
    max_segment = std::max(max_segment, other.max_segment);
    min_index = std::min(min_index, other.min_index);
    max_index = std::max(max_index, other.max_index);
    has_padding |= other.has_padding;
  }
};

inline bool MayAttend(const Extent& queries, const Extent& keys) {
  return queries.max_segment >= keys.min_segment &&
         queries.min_segment <= keys.max_segment &&
         queries.max_index >= keys.min_index;
}

// Whether every query attends to every key, where any may.
inline bool AllAttend(const Extent& queries, const Extent& keys) {
  return !queries.has_padding && !keys.has_padding &&
         queries.min_segment == queries.max_segment &&
         keys.min_segment == keys.max_segment &&
         queries.min_index >= keys.max_index;
}

struct Range {
  int64_t first;
  int count;
};

// Where tokens stand: segment ids [B, T], indices [T], and extents of them.
class Place {
 public:
  Place(const int32_t* segment_ids, const int32_t* index, int64_t B, int64_t T)
      : segment_ids_(segment_ids),
        index_(index),
        T_(T),
        num_blocks_((T + kTile - 1) / kTile),
        num_groups_((num_blocks_ + kGroup - 1) / kGroup),
        blocks_(B * num_blocks_),
        groups_(B * num_groups_) {
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t t = 0; t < T; ++t)
        blocks_[b * num_blocks_ + t / kTile].Add(Token(b, t));
      for (int64_t i = 0; i < num_blocks_; ++i)
        groups_[b * num_groups_ + i / kGroup].Add(Block(b, i));
    }
  }

  int64_t num_blocks() const { return num_blocks_; }
  const Extent& Block(int64_t b, int64_t i) const {
    return blocks_[b * num_blocks_ + i];
  }
  Extent Token(int64_t b, int64_t t) const {
    const int segment = Segment(b, t), at = Index(t);
    if (segment > 0) return {segment, segment, at, at};
    return {INT_MAX, 0, INT_MAX, -1, true};
  }
  int Count(int64_t i) const {  // tokens of block i
    return static_cast<int>(std::min<int64_t>(kTile, T_ - i * kTile));
  }
  int32_t Segment(int64_t b, int64_t t) const {
    return segment_ids_[b * T_ + t];
  }
  int32_t Index(int64_t t) const { return index_[t]; }

  // Of block i, from the first that these queries may attend to, to the last.
  Range Needed(const Extent& queries, int64_t b, int64_t i) const {
    int64_t first = i * kTile, end = first + Count(i);
    while (first < end && !MayAttend(queries, Token(b, first))) ++first;
    while (first < end && !MayAttend(queries, Token(b, end - 1))) --end;
    return {first, static_cast<int>(end - first)};
  }

  // The first block from `i` on that these queries may attend to, or the end.
  int64_t NextNeeded(const Extent& queries, int64_t b, int64_t i) const {
    for (; i < num_blocks_; ++i) {
      if (i % kGroup == 0 &&
          !MayAttend(queries, groups_[b * num_groups_ + i / kGroup])) {
        i += kGroup - 1;
      } else if (MayAttend(queries, Block(b, i))) {
        return i;
      }
    }
    return num_blocks_;
  }

 private:
  // ours: blocks that are passed over at once. Half a million tokens have 8192
  // blocks, and each of them would ask 8192 others otherwise.
  static constexpr int kGroup = 64;

  const int32_t* const segment_ids_;
  const int32_t* const index_;
  const int64_t T_, num_blocks_, num_groups_;
  std::vector<Extent> blocks_, groups_;
};

// Which queries of a block attend to a key, where not all of them do.
class Mask {
 public:
  Mask(const Place& queries, int64_t b, int64_t block) {
    for (int t = 0; t < kTile; ++t) {
      const bool is_there = t < queries.Count(block);
      const int64_t at = block * kTile + t;
      const int32_t segment = is_there ? queries.Segment(b, at) : 0;
      segments_[t / kLanes][t % kLanes] = segment > 0 ? segment : -1;
      index_[t / kLanes][t % kLanes] = is_there ? queries.Index(at) : -1;
    }
  }

  // All ones in the lanes of queries of vector w that attend to key s.
  Ints operator()(const Place& keys, int64_t b, int64_t s, int w) const {
    return (segments_[w] == keys.Segment(b, s)) & (index_[w] >= keys.Index(s));
  }

 private:
  Ints segments_[kVectors], index_[kVectors];
};

#endif  // LONGCTX_JAX_TILES_H_
