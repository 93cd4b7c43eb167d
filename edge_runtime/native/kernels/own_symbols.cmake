# Fails the build if a kernel file for one instruction set defines a symbol that other files may
# define too: an inline function or template outside of its own namespace. The linker keeps any one
# copy of such a symbol for the whole extension, and the AVX-512 copy would crash a machine without.
#
#   cmake -D NM=nm -D SOURCE=avx512 -D OBJECTS="a.o b.o" -P own_symbols.cmake
separate_arguments(OBJECTS)
foreach(object IN LISTS OBJECTS)
  if(NOT object MATCHES "/${SOURCE}\\.cc\\.o$")
    continue()
  endif()
  execute_process(COMMAND "${NM}" --defined-only --format=posix "${object}"
                  OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[^\n ]+ [WVu] " shared "${symbols}")
  list(FILTER shared EXCLUDE REGEX "7flexmoe[0-9]+${SOURCE}")
  if(shared)
    list(JOIN shared "\n  " names)
    message(FATAL_ERROR "${SOURCE}.cc defines symbols outside of flexmoe::${SOURCE}:\n  ${names}")
  endif()
endforeach()
