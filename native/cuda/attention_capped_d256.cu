// Attention's tensor-core kernels with capped products, for head sizes up to 256.
#include "attention_kernels.h"

LS_DEFINE_CAPPED_ATTENTION(256)
