#pragma once

// The whole public interface. Programs that use one method include its header alone, which compiles faster.
#include "lcomp/core/checked.h"
#include "lcomp/core/dtype.h"
#include "lcomp/core/error.h"
#include "lcomp/core/observer.h"
#include "lcomp/core/options.h"
#include "lcomp/core/rng.h"
#include "lcomp/core/threads.h"
#include "lcomp/core/weight.h"
#include "lcomp/io/hash.h"
