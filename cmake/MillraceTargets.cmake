# How every target of the project is built: one static library per folder, warnings as errors,
# includes from the repository root, programs collected in build/bin.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE RelWithDebInfo)
endif()
# Debug information in full doubles the link time and the size of a cache of objects; line tables
# are what a backtrace needs.
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O2 -g1")
set(CMAKE_C_FLAGS_RELWITHDEBINFO "-O2 -g1")

find_program(CCACHE ccache)
if(CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE})
  set(CMAKE_C_COMPILER_LAUNCHER ${CCACHE})
endif()

add_library(millrace_flags INTERFACE)
target_include_directories(millrace_flags INTERFACE ${CMAKE_SOURCE_DIR})
target_compile_options(millrace_flags INTERFACE -Wall -Wextra -Werror -Wno-missing-field-initializers)
if(CMAKE_CXX_COMPILER_ID MATCHES Clang)
  target_compile_options(millrace_flags INTERFACE -Wthread-safety)
endif()
if(MILLRACE_SANITIZE)
  target_compile_options(millrace_flags INTERFACE -fsanitize=${MILLRACE_SANITIZE}
    -fno-omit-frame-pointer -fno-sanitize-recover=all)
  target_link_options(millrace_flags INTERFACE -fsanitize=${MILLRACE_SANITIZE})
endif()

# A program loads what it uses, not all that the libraries it is made of could use: the keeper is
# small.
add_link_options(-Wl,--as-needed)

# What a part of the day's work needs, so that it builds no more than that: the programs for the
# demo, the tests that also run under the sanitizers.
add_custom_target(programs)
add_custom_target(sanitized_tests)

# millrace_library(NAME SOURCES a.cc… [DEPS …] [PRIVATE_DEPS …])
function(millrace_library NAME)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS;PRIVATE_DEPS" ${ARGN})
  add_library(${NAME} STATIC ${ARG_SOURCES})
  target_link_libraries(${NAME} PUBLIC millrace_flags ${ARG_DEPS} PRIVATE ${ARG_PRIVATE_DEPS})
endfunction()

# millrace_program(NAME SOURCES a.cc… DEPS …)
function(millrace_program NAME)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${NAME} ${ARG_SOURCES})
  target_link_libraries(${NAME} PRIVATE millrace_flags ${ARG_DEPS})
  add_dependencies(programs ${NAME})
endfunction()

# millrace_test(NAME SOURCES a_test.cc… DEPS … [LABELS …]): one GoogleTest binary per room, one
# ctest entry per binary (a binary starts in milliseconds; an entry per case would not).
function(millrace_test NAME)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS;LABELS" ${ARGN})
  add_executable(${NAME} ${ARG_SOURCES})
  target_link_libraries(${NAME} PRIVATE millrace_flags ${ARG_DEPS} GTest::gmock GTest::gtest_main)
  if(MILLRACE_SANITIZE STREQUAL "thread")
    target_link_libraries(${NAME} PRIVATE test_tsan_suppressions)
  endif()
  if(MILLRACE_SANITIZE MATCHES "address" AND "grpc" IN_LIST ARG_LABELS)
    target_link_libraries(${NAME} PRIVATE test_lsan_suppressions)
  endif()
  add_test(NAME ${NAME} COMMAND ${NAME})
  set_tests_properties(${NAME} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT 300)
  if(ARG_LABELS MATCHES "(^|;)(unit|contract|model|fuzz|sim)(;|$)")
    add_dependencies(sanitized_tests ${NAME})
  endif()
endfunction()
