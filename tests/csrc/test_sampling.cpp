// csrc/math/sampling.h compared with the standard library in long double.
#include <cmath>
#include <limits>
#include <random>

#include "../../csrc/math/sampling.h"
#include "check.h"
#include "numbers.h"

namespace {

using namespace adapruner;

void units_are_open() {
  CHECK_EQUAL(open_unit(0), std::ldexp(1.0, -53));
  CHECK_EQUAL(open_unit(~uint64_t{0}), std::nextafter(1.0, 0.0));
  CHECK_EQUAL(open_unit(uint64_t{1} << 63), 0.5 + std::ldexp(1.0, -53));
  CHECK_EQUAL(open_unit(0xfff), open_unit(0));  // the lowest bits are not used
  std::mt19937_64 random(1);
  for (int i = 0; i < 100000; ++i) {
    const uint64_t hash = random();
    const Real exact = (static_cast<Real>(hash >> 12) + 0.5L) * std::ldexp(Real{1}, -52);
    CHECK_EQUAL(static_cast<Real>(open_unit(hash)), exact);
  }
}

void noise_follows_its_formula() {
  std::mt19937_64 random(2);
  for (int i = 0; i < 300000; ++i) {
    const uint64_t hash = i < 64 ? ~uint64_t{0} >> i : i < 128 ? uint64_t{1} << (i - 64) : random();
    const Real exact = -std::log(-std::log(static_cast<Real>(open_unit(hash))));
    const Real found = -log_finite(exponential(hash));
    CHECK(std::fabs(found - exact) <= 2e-15L * (1 + std::fabs(exact)));
  }
  CHECK_EQUAL(exponential(~uint64_t{0}), std::ldexp(1.0, -53));
  CHECK(near(exponential(0), 53 * std::log(Real{2}), 1e-15L));
}

void ages_count_from_one() {
  for (int age = 0; age < kAges; ++age) {
    const Real exact = 1.5L * std::log(static_cast<Real>(age < 1 ? 1 : age));
    CHECK(std::fabs(age_term(1.5, age) - exact) <= 1e-15L * exact);
    CHECK_EQUAL(age_term(0.0, age), 0.0);
  }
}

void keys_at_their_ends() {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const double noise = exponential(12345), gumbel = -log_finite(noise);
  const auto capped = [&](double scale, float m, double ceiling) {
    return sampling_key(scale, m, ceiling, 0.5, noise);
  };
  const auto key = [&](double scale, float m) { return capped(scale, m, kInfinity); };
  for (const double scale : {2.0, 0.0, -2.0, 1e300}) {
    CHECK_EQUAL(key(scale, -kInfinity), -kInfinity);  // an excluded sample stays excluded
    CHECK(std::isnan(key(scale, std::numeric_limits<float>::quiet_NaN())));
    for (const double ceiling : {-1e300, 0.0, 0.7}) {
      CHECK_EQUAL(capped(scale, -kInfinity, ceiling), -kInfinity);
      CHECK(std::isnan(capped(scale, std::numeric_limits<float>::quiet_NaN(), ceiling)));
    }
  }
  CHECK_EQUAL(key(1.0, kInfinity), kInfinity);
  CHECK(std::isnan(key(0.0, kInfinity)));
  CHECK_EQUAL(key(1e300, 1.0f), kInfinity);
  CHECK_EQUAL(key(0.0, 3e38f), static_cast<float>(0.5 + gumbel));
  CHECK_EQUAL(key(-1.5, 0.3f), static_cast<float>(-1.5 * double{0.3f} + 0.5 + gumbel));
  // m above its ceiling counts as the ceiling, not as the float nearest to it.
  const float at_ceiling = static_cast<float>(3.0 * 0.1 + 0.5 + gumbel);
  for (const float m : {0.1f, 2.0f, 3e38f, kInfinity}) {  // 0.1f is above 0.1
    CHECK_EQUAL(capped(3.0, m, 0.1), at_ceiling);
  }
  CHECK_EQUAL(capped(3.0, 0.0999f, 0.1), key(3.0, 0.0999f));
  CHECK_EQUAL(capped(0.0, kInfinity, 0.1), static_cast<float>(0.5 + gumbel));
  CHECK_EQUAL(capped(1.0, -2.0f, -1e300), -kInfinity);  // from the product, not from an exclusion
}

}  // namespace

int main() {
  units_are_open();
  noise_follows_its_formula();
  ages_count_from_one();
  keys_at_their_ends();
  return check::failures() == 0 ? 0 : 1;
}
