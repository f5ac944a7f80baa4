// Lets a chosen call of the system fail, or ends the process there. Loaded by LD_PRELOAD.
//
// Only calls count that change something below one folder: writes, syncs, renames, new files, new
// folders, links and removals. torture/faults.py arms it, in the process that is to suffer.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { kKill = -1, kShort = -2 };  // other values are an errno

static char folder[PATH_MAX];
static size_t folder_length;
static long left = -1;  // calls until the fault; below 0 after it
static long calls;      // calls that counted
static int what;
static int sticky;  // whether all later calls fail too
static long jump;   // seconds that the clock of the day has jumped

void torture_arm(const char* below, long number, int fault, int again) {
  snprintf(folder, sizeof folder, "%s", below);
  folder_length = strlen(folder);
  left = number;
  what = fault;
  sticky = again;
  calls = 0;
}

long torture_calls(void) { return calls; }
void torture_jump(long seconds) { jump = seconds; }

static int inside(const char* path) {
  return folder_length && path && !strncmp(path, folder, folder_length);
}

static int inside_at(int directory, const char* path) {
  if (path && path[0] == '/') return inside(path);
  char link[64], base[PATH_MAX];
  snprintf(link, sizeof link, directory == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", directory);
  const ssize_t n = readlink(link, base, sizeof base - 1);
  if (n < 0) return 0;
  base[n] = 0;
  return inside(base);
}

static int inside_fd(int fd) {
  if (!folder_length) return 0;
  const int before = errno;
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t n = readlink(link, path, sizeof path - 1);
  errno = before;
  if (n < 0) return 0;
  path[n] = 0;
  return inside(path);
}

// Whether this call fails. A call that counts may also end the process.
static int fails(int counts) {
  if (!counts) return 0;
  ++calls;
  if (left < 0) return left == -2 && sticky;
  if (left-- > 0) return 0;
  left = -2;
  if (what == kKill) raise(SIGKILL);
  return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FAIL(counts)               \
  if (fails(counts)) {             \
    if (what != kShort) {          \
      errno = what;                \
      return -1;                   \
    }                              \
  }

ssize_t write(int fd, const void* data, size_t size) {
  if (fails(inside_fd(fd))) {
    if (what != kShort) {
      errno = what;
      return -1;
    }
    size = size > 1 ? size / 2 : size;
  }
  return REAL(write)(fd, data, size);
}

ssize_t pwrite64(int fd, const void* data, size_t size, off64_t offset) {
  FAIL(inside_fd(fd))
  return REAL(pwrite64)(fd, data, size, offset);
}

ssize_t pwrite(int fd, const void* data, size_t size, off_t offset) {
  FAIL(inside_fd(fd))
  return REAL(pwrite)(fd, data, size, offset);
}

ssize_t writev(int fd, const struct iovec* parts, int count) {
  FAIL(inside_fd(fd))
  return REAL(writev)(fd, parts, count);
}

int fsync(int fd) {
  FAIL(inside_fd(fd))
  return REAL(fsync)(fd);
}

int ftruncate64(int fd, off64_t size) {
  FAIL(inside_fd(fd))
  return REAL(ftruncate64)(fd, size);
}

int rename(const char* from, const char* to) {
  FAIL(inside_at(AT_FDCWD, to))
  return REAL(rename)(from, to);
}

int mkdir(const char* path, mode_t mode) {
  FAIL(inside_at(AT_FDCWD, path))
  return REAL(mkdir)(path, mode);
}

int symlink(const char* to, const char* path) {
  FAIL(inside_at(AT_FDCWD, path))
  return REAL(symlink)(to, path);
}

int chmod(const char* path, mode_t mode) {
  FAIL(inside_at(AT_FDCWD, path))
  return REAL(chmod)(path, mode);
}

// Removals only count as places for a kill: a full disk still lets files be removed.
int unlink(const char* path) {
  if (what == kKill || sticky == 2) FAIL(inside_at(AT_FDCWD, path))
  return REAL(unlink)(path);
}

int unlinkat(int directory, const char* path, int flags) {
  if (what == kKill || sticky == 2) FAIL(inside_at(directory, path))
  return REAL(unlinkat)(directory, path, flags);
}

int rmdir(const char* path) {
  if (what == kKill || sticky == 2) FAIL(inside_at(AT_FDCWD, path))
  return REAL(rmdir)(path);
}

#define OPEN(name)                                                                       \
  int name(const char* path, int flags, ...) {                                           \
    mode_t mode = 0;                                                                     \
    if (flags & (O_CREAT | __O_TMPFILE)) {                                               \
      va_list rest;                                                                      \
      va_start(rest, flags);                                                             \
      mode = va_arg(rest, mode_t);                                                       \
      va_end(rest);                                                                      \
    }                                                                                    \
    FAIL((flags & (O_CREAT | O_TRUNC | O_WRONLY | O_RDWR)) && inside_at(AT_FDCWD, path)) \
    return REAL(name)(path, flags, mode);                                                \
  }
OPEN(open)
OPEN(open64)

int clock_gettime(clockid_t clock, struct timespec* time) {
  const int done = REAL(clock_gettime)(clock, time);
  if (clock == CLOCK_REALTIME) time->tv_sec += jump;
  return done;
}
