// A keyed permutation of [0, n). Each place is computed when it is needed, and nothing is stored.
// It is a generalised Feistel network (Black and Rogaway, "Ciphers with Arbitrary Finite Domains",
// 2002) on a grid with a few more than n cells. Cycle walking skips the extra cells. It is made for
// shuffling, not for secrets.
#pragma once

#include <cmath>
#include <cstdint>

#include "platform.h"

namespace adapruner {

constexpr uint64_t kMostPermuted = uint64_t{1} << 62;
constexpr int kMostRounds = 32;

// Cell (row, column) of the grid is the number row·columns + column. Rounds alternate: one adds a
// function of the column to the row number, the next adds a function of the row to the column
// number.
struct Permutation {
  uint64_t n;
  uint32_t rows;     // both at most 2³¹, so that the sum of two row or column numbers fits 32 bits
  uint32_t columns;  // even: if both were odd, every permutation would be even
  int rounds;
  uint32_t add[kMostRounds];
  uint32_t multiply[kMostRounds];
};

// A well-mixed word. Different x give different words. (The finaliser of SplitMix64.)
ADAPRUNER_HD inline uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// A hash of sample i that `key` fixes. No two samples have the same hash, because each step can be
// undone.
ADAPRUNER_HD inline uint64_t sample_hash(uint64_t i, uint64_t key) {
  return mixed(i * 0x9e3779b97f4a7c15u + key);
}

// The permutation of [0, n) for a key, 1 ≤ n ≤ kMostPermuted.
ADAPRUNER_HD inline Permutation make_permutation(uint64_t n, uint64_t key) {
  Permutation p;
  p.n = n;
  uint64_t rows = static_cast<uint64_t>(std::sqrt(static_cast<double>(n)));
  while (rows * rows < n) ++rows;
  while ((rows - 1) * (rows - 1) >= n) --rows;
  const uint64_t columns = (n + rows - 1) / rows;
  p.rows = static_cast<uint32_t>(rows);
  p.columns = static_cast<uint32_t>(columns + columns % 2);
  // A small grid has few round functions to choose from, so it takes more rounds. They cost
  // nothing.
  p.rounds = n <= 1024 ? kMostRounds : 6;
  for (int round = 0; round < p.rounds; ++round) {
    key += 0x9e3779b97f4a7c15u;
    const uint64_t word = mixed(key);
    p.add[round] = static_cast<uint32_t>(word);
    p.multiply[round] = static_cast<uint32_t>(word >> 32) | 1;
  }
  return p;
}

// A word whose upper bits are close to random for every x. In this file a Word is a uint32_t or a
// vector of them.
template <typename Word>
ADAPRUNER_HD inline Word round_word(Word x, uint32_t add, uint32_t multiply) {
  x = (x ^ add) * 0x9e3779b1u;
  return (x ^ (x >> 15)) * multiply;
}

// (a + b) modulo range, for a and b below range.
template <typename Word>
ADAPRUNER_HD inline Word add_modulo(Word a, Word b, uint32_t range) {
  const Word sum = a + b, less = sum - range;
  return sum < less ? sum : less;  // if sum < range, `less` wraps around
}

// Two rounds, r and r + 1, with r even. scaled(x, range) = ⌊x·range / 2³²⌋ maps a random word to a
// number below `range`.
template <typename Word, typename Scaled>
ADAPRUNER_HD inline void two_rounds(const Permutation& p, int r, Word& row, Word& column,
                                    const Scaled& scaled) {
  const Word to_row = scaled(round_word(column, p.add[r], p.multiply[r]), p.rows);
  row = add_modulo(row, to_row, p.rows);
  const Word to_column = scaled(round_word(row, p.add[r + 1], p.multiply[r + 1]), p.columns);
  column = add_modulo(column, to_column, p.columns);
}

ADAPRUNER_HD inline uint32_t scaled_word(uint32_t x, uint32_t range) {
  return static_cast<uint32_t>(static_cast<uint64_t>(x) * range >> 32);
}

// All rounds on one cell.
ADAPRUNER_HD inline uint64_t permuted_cell(const Permutation& p, uint64_t cell) {
  uint32_t row = static_cast<uint32_t>(cell / p.columns);
  uint32_t column = static_cast<uint32_t>(cell % p.columns);
  for (int r = 0; r < p.rounds; r += 2) two_rounds(p, r, row, column, scaled_word);
  return static_cast<uint64_t>(row) * p.columns + column;
}

// Cycle walking: permutes a cell until it is below n. A cell below n stays.
ADAPRUNER_HD inline uint64_t walk_inside(const Permutation& p, uint64_t cell) {
  while (cell >= p.n) cell = permuted_cell(p, cell);
  return cell;
}

// π(position) in [0, n), for a position in [0, n).
ADAPRUNER_HD inline uint64_t permuted(const Permutation& p, uint64_t position) {
  return walk_inside(p, permuted_cell(p, position));
}

}  // namespace adapruner
