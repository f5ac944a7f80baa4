#include "topk.h"

#include "topk.cuh"
