// Checks for the C++ tests, without a framework. A failed check is reported on stderr and the test
// goes on. main returns the result of failures().
#pragma once

#include <iostream>

namespace check {

inline int& failures() {
  static int count = 0;
  return count;
}

template <typename A, typename B>
void equal(const A& a, const B& b, const char* text, const char* file, int line) {
  if (a == b) return;
  ++failures();
  std::cerr << file << ":" << line << ": " << text << ": " << +a << " is not " << +b << "\n";
}

inline void holds(bool condition, const char* text, const char* file, int line) {
  if (condition) return;
  ++failures();
  std::cerr << file << ":" << line << ": " << text << " does not hold\n";
}

}  // namespace check

#define CHECK(condition) ::check::holds((condition), #condition, __FILE__, __LINE__)
#define CHECK_EQUAL(a, b) ::check::equal((a), (b), #a " == " #b, __FILE__, __LINE__)
