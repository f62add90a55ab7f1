// Symbol versions of the operator's manylinux_2_24 wheel on newer systems, included before all sources. Each symbol
// below has a newer default version since the glibc of its condition, and the library would not load on older systems.

#pragma once

#if defined(__linux__) && defined(__x86_64__)
#include <features.h>
#ifdef __GLIBC__
#if __GLIBC_PREREQ(2, 29)
__asm__(".symver exp, exp@GLIBC_2.2.5");
#endif
#if __GLIBC_PREREQ(2, 34)
__asm__(".symver dlsym, dlsym@GLIBC_2.2.5");
#endif
#if __GLIBC_PREREQ(2, 32)
// Read by std::shared_ptr of newer compilers; false: atomic reference counts.
extern "C" {
__attribute__((weak, visibility("hidden"))) char __libc_single_threaded = 0;
}
#endif
#endif
#endif
