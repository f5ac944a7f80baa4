#include "segmented_topk.cuh"
#include "segmented_topk.h"
