// Kernels of the cross entropy in the emulator: rows of every length and layout.
#include "cross_entropy_cases.h"

namespace {

using namespace cases;

void narrow_rows() {
  for (const int64_t classes : {1, 2, 3, 5, 8, 9, 10, 17, 32, 33, 100, 128, 255, 256}) {
    each_type({.samples = 7, .rows = 1, .classes = classes});
    each_type({.samples = 40, .rows = 3, .classes = classes, .smoothing = 0.2, .weights = true,
               .ignored = 0.4, .in_place = false, .pad = 1});
  }
  each_type({.samples = 600, .rows = 1, .classes = 10, .ignored = 0.2});
}

}  // namespace

int main() {
  narrow_rows();
  return check::failures() != 0;
}
