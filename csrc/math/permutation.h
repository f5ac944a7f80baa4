// A keyed permutation of [0, n) that is computed place by place and stored nowhere: a generalised
// Feistel network (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002) on a grid of a
// few more than n cells, and cycle walking for those few. For shuffling, not for secrets.
#pragma once

#include <cmath>
#include <cstdint>

#include "platform.h"

namespace adapruner {

constexpr uint64_t kMostPermuted = uint64_t{1} << 62;
constexpr int kMostRounds = 32;

// Cell (row, column) of the grid is the number row·columns + column. A round adds to each row
// number a function of the column, the next one to each column number a function of the row.
struct Permutation {
  uint64_t n;
  uint32_t rows;     // both at most 2³¹, so that a sum of two numbers below stays in 32 bits
  uint32_t columns;  // even: with both odd, every permutation would be an even one
  int rounds;
  uint32_t add[kMostRounds];
  uint32_t multiply[kMostRounds];
};

// A well-mixed word, one of its own for every x (the finaliser of SplitMix64).
ADAPRUNER_HD inline uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// A hash of sample i that `key` fixes, in which no two samples are equal: all its steps can be
// undone.
ADAPRUNER_HD inline uint64_t sample_hash(uint64_t i, uint64_t key) {
  return mixed(i * 0x9e3779b97f4a7c15u + key);
}

// The permutation of [0, n), 1 ≤ n ≤ kMostPermuted, that belongs to a key.
ADAPRUNER_HD inline Permutation make_permutation(uint64_t n, uint64_t key) {
  Permutation p;
  p.n = n;
  uint64_t rows = static_cast<uint64_t>(std::sqrt(static_cast<double>(n)));
  while (rows * rows < n) ++rows;
  while ((rows - 1) * (rows - 1) >= n) --rows;
  const uint64_t columns = (n + rows - 1) / rows;
  p.rows = static_cast<uint32_t>(rows);
  p.columns = static_cast<uint32_t>(columns + columns % 2);
  // Small grids have few functions to draw a round from, and cost nothing.
  p.rounds = n <= 1024 ? kMostRounds : 6;
  for (int round = 0; round < p.rounds; ++round) {
    key += 0x9e3779b97f4a7c15u;
    const uint64_t word = mixed(key);
    p.add[round] = static_cast<uint32_t>(word);
    p.multiply[round] = static_cast<uint32_t>(word >> 32) | 1;
  }
  return p;
}

// Its upper bits are as good as random for every x. Here and below a Word is a uint32_t or a vector
// of them.
template <typename Word>
ADAPRUNER_HD inline Word round_word(Word x, uint32_t add, uint32_t multiply) {
  x = (x ^ add) * 0x9e3779b1u;
  return (x ^ (x >> 15)) * multiply;
}

// a + b modulo range, of two numbers below it.
template <typename Word>
ADAPRUNER_HD inline Word add_modulo(Word a, Word b, uint32_t range) {
  const Word sum = a + b, less = sum - range;
  return sum < less ? sum : less;  // where sum < range, less wraps around
}

// Two rounds, from the even one r on. scaled(x, range) = ⌊x·range / 2³²⌋ makes a number below
// `range` of a random word.
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

// The rounds on one cell.
ADAPRUNER_HD inline uint64_t permuted_cell(const Permutation& p, uint64_t cell) {
  uint32_t row = static_cast<uint32_t>(cell / p.columns);
  uint32_t column = static_cast<uint32_t>(cell % p.columns);
  for (int r = 0; r < p.rounds; r += 2) two_rounds(p, r, row, column, scaled_word);
  return static_cast<uint64_t>(row) * p.columns + column;
}

// Where a cell beyond n leads to in the end; a cell below n is its own.
ADAPRUNER_HD inline uint64_t walk_inside(const Permutation& p, uint64_t cell) {
  while (cell >= p.n) cell = permuted_cell(p, cell);
  return cell;
}

// π(position) in [0, n), for a position in [0, n).
ADAPRUNER_HD inline uint64_t permuted(const Permutation& p, uint64_t position) {
  return walk_inside(p, permuted_cell(p, position));
}

}  // namespace adapruner
