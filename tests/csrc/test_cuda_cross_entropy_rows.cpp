// Cross entropy kernels in the emulator, with rows of every length and layout.
#include "cross_entropy_cases.h"

namespace {

using namespace cases;

void narrow_rows() {
  for (const int64_t classes : {1, 2, 3, 5, 8, 9, 10, 17, 32, 33, 100, 128, 255, 256}) {
    each_type({.samples = 7, .rows = 1, .classes = classes});
    each_type({.samples = 9,
               .rows = 3,
               .classes = classes,
               .smoothing = 0.2,
               .weights = true,
               .ignored = 0.4,
               .in_place = false,
               .pad = 1});
  }
  each_type({.samples = 600, .rows = 1, .classes = 10, .ignored = 0.2});
  each_type({.samples = 3, .rows = 200, .classes = 6, .ignored = 0.2});
}

// One or more warps for a row. Heads and rests of every length.
void wide_rows() {
  for (int64_t offset = 0; offset < 8; ++offset) {
    each_type({.samples = 3, .rows = 1, .classes = 263 - 2 * offset, .offset = offset});
  }
  each_type({.samples = 11, .rows = 1, .classes = 257, .pad = 3});
  each_type({.samples = 3, .rows = 5, .classes = 999, .weights = true, .ignored = 0.4});
  each_type(
      {.samples = 2, .rows = 2, .classes = 2051, .smoothing = 0.1, .in_place = false, .pad = 2});
  each_type({.samples = 2,
             .rows = 1,
             .classes = 1500,
             .smoothing = 1,
             .weights = true,
             .in_place = false,
             .offset = 1});
}

// Rows that do not fit the registers, and rows that do not fit shared memory either.
void long_rows() {
  run<double>({.samples = 1, .rows = 1, .classes = 9001, .offset = 1});
  run<double>(
      {.samples = 2, .rows = 1, .classes = 12345, .smoothing = 0.1, .device = {3, 24 << 10}});
  run<float>({.samples = 2, .rows = 1, .classes = 17411, .offset = 3, .device = {3, 64 << 10}});
  run<float>({.samples = 1,
              .rows = 2,
              .classes = 18001,
              .smoothing = 0.1,
              .weights = true,
              .device = {3, 12 << 10}});
  run<float>(
      {.samples = 2, .rows = 1, .classes = 36007, .in_place = false, .device = {3, 12 << 10}});
  run<__nv_bfloat16>({.samples = 1, .rows = 3, .classes = 40009, .device = {3, 64 << 10}});
  run<__nv_bfloat16>({.samples = 2, .rows = 1, .classes = 128256, .device = {3, 227 << 10}});
  run<__half>({.samples = 1, .rows = 1, .classes = 90011, .offset = 5, .device = {3, 48 << 10}});
}

void strided_rows() {
  for (const int64_t classes : {1, 3, 21, 33, 260}) {
    each_type({.samples = 2, .rows = 45, .classes = classes, .strided = true, .ignored = 0.3});
    each_type({.samples = 3,
               .rows = 33,
               .classes = classes,
               .strided = true,
               .smoothing = 0.2,
               .weights = true,
               .in_place = false,
               .pad = 2,
               .offset = 1});
  }
  run<float>({.samples = 1, .rows = 700, .classes = 7, .strided = true, .ignored = 0.1});
  run<float>({.samples = 4, .rows = 1, .classes = 700, .strided = true, .smoothing = 0.1});
}

void extremes() {
  for (const bool strided : {false, true}) {
    for (const int64_t classes : {20, 300}) {
      each_type({.samples = 4, .rows = 2, .classes = classes, .strided = strided, .scale = 1e4});
      each_type({.samples = 4, .rows = 1, .classes = classes, .strided = strided, .scale = 1e-6});
      each_type({.samples = 4, .rows = 2, .classes = classes, .strided = strided, .masked = 0.5});
      each_type({.samples = 4, .rows = 2, .classes = classes, .strided = strided, .ignored = 1});
    }
  }
}

}  // namespace

int main() {
  narrow_rows();
  wide_rows();
  long_rows();
  strided_rows();
  extremes();
  return check::failures() != 0;
}
