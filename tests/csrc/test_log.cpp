// csrc/math/log.h compared with the standard library in long double.
#include <cmath>
#include <limits>
#include <random>

#include "../../csrc/math/log.h"
#include "check.h"
#include "numbers.h"

namespace {

using namespace adapruner;

void log_positive_is_as_close_as_it_says() {
  std::mt19937_64 random(5);
  std::uniform_real_distribution<double> anywhere(-708, 709), middle(-1, 1), close(-1e-3, 1e-3);
  for (int i = 0; i < 300000; ++i) {
    for (double x : {std::exp(anywhere(random)), std::exp(middle(random)), 1 + close(random)}) {
      CHECK(near(log_positive(x), std::log(static_cast<Real>(x)), 1e-15L));
      CHECK_EQUAL(log_finite(x), log_positive(x));
    }
  }
  const double root = std::sqrt(0.5), least = std::numeric_limits<double>::min();
  for (double x : {least, std::numeric_limits<double>::max(), std::nextafter(1.0, 0.0),
                   std::nextafter(1.0, 2.0), root, std::nextafter(root, 0.0), 2 * root, 1e-5}) {
    CHECK(near(log_positive(x), std::log(static_cast<Real>(x)), 1e-15L));
  }
  CHECK_EQUAL(log_positive(1.0), 0.0);
  CHECK_EQUAL(log_positive(0.0), -std::numeric_limits<double>::infinity());
  CHECK_EQUAL(log_positive(std::numeric_limits<double>::infinity()),
              std::numeric_limits<double>::infinity());
  CHECK(std::isnan(log_positive(std::numeric_limits<double>::quiet_NaN())));
}

}  // namespace

int main() {
  log_positive_is_as_close_as_it_says();
  return check::failures() == 0 ? 0 : 1;
}
