// The other translation unit that includes everything.
#include "pagedkv/pagedkv.hpp"

int blocks_for(int num_tokens, int block_size);
int blocks_for(int num_tokens, int block_size) { return pagedkv::ceil_div(num_tokens, block_size); }
