// One of two translation units that include everything: a function that is not inline would be defined twice.
#include "pagedkv/pagedkv.hpp"

int blocks_for(int num_tokens, int block_size);

int main() { return blocks_for(37, 16) == pagedkv::ceil_div(37, 16) ? 0 : 1; }
