// Comparison of numbers by their relative error.
#pragma once

#include <cmath>

using Real = long double;

inline Real relative_error(Real found, Real expected) {
  return found == expected ? 0 : std::fabs(found - expected) / std::fabs(expected);
}

inline bool near(Real found, Real expected, Real tolerance) {
  return relative_error(found, expected) <= tolerance;
}
