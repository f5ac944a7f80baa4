#include "sampling_keys.cuh"
#include "sampling_keys.h"
