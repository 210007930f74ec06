// Attention's tensor-core kernels with capped products, for head sizes up to 128.
#include "attention_kernels.h"

LS_DEFINE_CAPPED_ATTENTION(128)
