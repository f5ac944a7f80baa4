#include "oldest_mask.cuh"
#include "oldest_mask.h"
