#include "masked_order.cuh"
#include "masked_order.h"
