#include "topk.cuh"
#include "topk.h"
