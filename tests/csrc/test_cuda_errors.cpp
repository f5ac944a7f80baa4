// csrc/cuda/errors.h in the emulator: which of several errors is kept.
#define ADAPRUNER_EMULATE
#include <vector>

#include "../../csrc/cuda/errors.h"
#include "check.h"

namespace {

using namespace adapruner;
using namespace adapruner::cuda;

struct Offence {
  ErrorKind kind;
  int64_t place, value;
};

__global__ void note(int64_t* state, const Offence* offences, int64_t count) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) note_error(state, offences[i].kind, offences[i].place, offences[i].value);
}

__global__ void seal(int64_t* state) { seal_errors(state); }

struct State {
  int64_t slots[kStateSize] = {};

  void call(const std::vector<Offence>& offences) {
    const auto count = static_cast<int64_t>(offences.size());
    launch(note, dim3(static_cast<unsigned>(ceil_div<int64_t>(count, 64))), dim3(64), 0, nullptr,
           slots, offences.data(), count);
  }
  void end_batch() { launch(seal, dim3(1), dim3(1), 0, nullptr, slots); }

  void is(ErrorKind kind, int64_t place, int64_t value) const {
    CHECK_EQUAL(slots[kErrorKind], int64_t{kind});
    CHECK_EQUAL(slots[kErrorPlace], place);
    CHECK_EQUAL(slots[kErrorValue], value);
    CHECK_EQUAL(slots[kErrorLatch] == kErrorsHeld, false);
  }
};

void the_first_of_a_call_is_told() {
  State state;
  state.end_batch();
  state.is(kNoError, 0, 0);
  state.call({{kBadTarget, 70, 12}, {kBadTarget, 3, -9}, {kBadTarget, 8, 11}});
  state.is(kBadTarget, 3, -9);
  state.call({{kBadTarget, 4, 5}});  // of the same batch
  state.is(kBadTarget, 3, -9);
  state.call({{kNegativeLoss, 0, std::bit_cast<int64_t>(-1.5)}, {kBadId, 900, 17}});
  state.is(kBadId, 900, 17);
}

void a_sealed_error_stays() {
  State state;
  state.call({{kNegativeLoss, 5, std::bit_cast<int64_t>(-2.0)}});
  state.end_batch();
  state.call({{kBadId, 0, -1}, {kNegativeLoss, 0, std::bit_cast<int64_t>(-3.0)}});
  state.end_batch();
  state.is(kNegativeLoss, 5, std::bit_cast<int64_t>(-2.0));
  CHECK_EQUAL(read_double(state.slots, kErrorValue), -2.0);
}

void many_at_once_and_places_beyond_32_bits() {
  std::vector<Offence> offences;
  for (int64_t i = 0; i < 1000; ++i) {
    const int64_t place = (int64_t{1} << 40) + (i * 7919 + 13) % 1000;
    offences.push_back({kBadId, place, -place});
  }
  State state;
  state.call(offences);
  state.is(kBadId, int64_t{1} << 40, -(int64_t{1} << 40));
  for (int slot = 0; slot < kErrorKind; ++slot) CHECK_EQUAL(state.slots[slot], 0);
}

}  // namespace

int main() {
  emulation::each_order([] {
    the_first_of_a_call_is_told();
    a_sealed_error_stays();
    many_at_once_and_places_beyond_32_bits();
  });
  return check::failures() != 0;
}
