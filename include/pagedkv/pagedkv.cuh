// Everything, for translation units that nvcc compiles.
#pragma once

#include "pagedkv/pagedkv.hpp"
