# Every library from outside, in one place. `./dev` installs the packages.

find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)
find_package(absl REQUIRED)
find_package(CURL REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(prometheus-cpp REQUIRED)
find_package(LibXml2 REQUIRED)
pkg_check_modules(URING REQUIRED IMPORTED_TARGET liburing)
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash)
pkg_check_modules(JEMALLOC REQUIRED IMPORTED_TARGET jemalloc)
# By name: pkg-config walks gRPC's tree of packages for ten seconds, and shared libraries know what
# they need.
find_package(Protobuf REQUIRED)
find_library(GRPCPP_LIBRARY grpc++ REQUIRED)
find_library(GRPC_LIBRARY grpc REQUIRED)
find_library(GPR_LIBRARY gpr REQUIRED)
add_library(millrace_grpc INTERFACE)
target_link_libraries(millrace_grpc INTERFACE
  ${GRPCPP_LIBRARY} ${GRPC_LIBRARY} ${GPR_LIBRARY} protobuf::libprotobuf)
find_program(GRPC_CPP_PLUGIN grpc_cpp_plugin REQUIRED)
# The system's libfuse where it is new enough (3.17 has passthrough, 3.18 the io_uring transport),
# else the one that `./dev` built in build/deps.
if(EXISTS ${CMAKE_SOURCE_DIR}/build/deps/fuse3)
  file(GLOB MILLRACE_FUSE_PKGCONFIG
    ${CMAKE_SOURCE_DIR}/build/deps/fuse3/lib/pkgconfig
    ${CMAKE_SOURCE_DIR}/build/deps/fuse3/lib/*/pkgconfig)
  list(JOIN MILLRACE_FUSE_PKGCONFIG ":" MILLRACE_FUSE_PKGCONFIG)
  set(ENV{PKG_CONFIG_PATH} "${MILLRACE_FUSE_PKGCONFIG}:$ENV{PKG_CONFIG_PATH}")
endif()
pkg_check_modules(FUSE3 REQUIRED IMPORTED_TARGET fuse3>=3.18)
# Set by `./dev` in a libfuse with cmake/patches/libfuse-uring.patch.
pkg_get_variable(MILLRACE_FUSE_URING fuse3 millrace_uring)
if(MILLRACE_TESTS)
  find_package(GTest REQUIRED)
endif()
if(MILLRACE_BENCH)
  find_package(benchmark REQUIRED)
endif()
