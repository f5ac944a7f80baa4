#include "digit_histogram.cuh"
#include "digit_histogram.h"
