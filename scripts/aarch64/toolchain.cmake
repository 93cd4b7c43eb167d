# Debian's cross compiler for aarch64 Linux. FLEXMOE_AARCH64, in the environment, names the folder
# with the arm64 Python's headers in sysroot/.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_STRIP aarch64-linux-gnu-strip)

# Debian's pyconfig.h includes the one of its architecture from here.
set(CMAKE_CXX_FLAGS_INIT "-isystem $ENV{FLEXMOE_AARCH64}/sysroot/usr/include")
