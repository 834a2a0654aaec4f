// A copy of a sequence is spelt fork().
// error: use of deleted function
#include "pagedkv/cache/sequence.hpp"

#ifdef MUST_COMPILE
pagedkv::Sequence twin(const pagedkv::Sequence& sequence) { return sequence.fork(); }
#else
pagedkv::Sequence twin(const pagedkv::Sequence& sequence) { return sequence; }
#endif
