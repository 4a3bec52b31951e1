/* Preloaded into a process, makes the Nth system call on files of one folder fail.
 *
 * arm(folder, n, error) counts from 1 the calls of open, write, fsync, rename, mkdir and unlink, and
 * of their forms for names in an open folder, that touch files below that folder, and lets the nth
 * fail with the error; n = 0 only counts. counted() says how many there were.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static char folder[PATH_MAX];
static long calls, failing;
static int failure;

void arm(const char *below, long n, int error) {
    snprintf(folder, sizeof folder, "%s", below);
    calls = 0;
    failing = n;
    failure = error;
}

long counted(void) { return calls; }

static int is_inside(const char *path) {
    return folder[0] && path && strncmp(path, folder, strlen(folder)) == 0;
}

static int is_file_inside(int descriptor) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return is_inside(path);
}

/* Whether this call is the one to fail; errno is set then. */
static int fails(int concerns_us) {
    if (!concerns_us) return 0;
    if (__atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST) != failing) return 0;
    errno = failure;
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int open_as(int (*real)(const char *, int, ...), const char *path, int flags, mode_t mode) {
    if (fails(is_inside(path))) return -1;
    return real(path, flags, mode);
}

#define OPEN(name)                                  \
    int name(const char *path, int flags, ...) {    \
        mode_t mode = 0;                            \
        if (flags & (O_CREAT | O_TMPFILE)) {        \
            va_list rest;                           \
            va_start(rest, flags);                  \
            mode = va_arg(rest, mode_t);            \
            va_end(rest);                           \
        }                                           \
        return open_as(REAL(name), path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

static int is_at(int folder_descriptor, const char *path) {
    if (path && path[0] == '/') return is_inside(path);
    return folder[0] && is_file_inside(folder_descriptor);
}

#define OPENAT(name)                                          \
    int name(int at, const char *path, int flags, ...) {      \
        mode_t mode = 0;                                      \
        if (flags & (O_CREAT | O_TMPFILE)) {                  \
            va_list rest;                                     \
            va_start(rest, flags);                            \
            mode = va_arg(rest, mode_t);                      \
            va_end(rest);                                     \
        }                                                     \
        if (fails(is_at(at, path))) return -1;                \
        return REAL(name)(at, path, flags, mode);             \
    }
OPENAT(openat)
OPENAT(openat64)

int renameat(int from_at, const char *from, int to_at, const char *to) {
    if (fails(is_at(to_at, to))) return -1;
    return REAL(renameat)(from_at, from, to_at, to);
}

int mkdirat(int at, const char *path, mode_t mode) {
    if (fails(is_at(at, path))) return -1;
    return REAL(mkdirat)(at, path, mode);
}

int unlinkat(int at, const char *path, int flags) {
    if (fails(is_at(at, path))) return -1;
    return REAL(unlinkat)(at, path, flags);
}

ssize_t write(int descriptor, const void *data, size_t size) {
    int error = errno;
    int is_ours = folder[0] && is_file_inside(descriptor);
    errno = error;
    if (fails(is_ours)) return -1;
    return REAL(write)(descriptor, data, size);
}

int fsync(int descriptor) {
    if (fails(folder[0] && is_file_inside(descriptor))) return -1;
    return REAL(fsync)(descriptor);
}

int rename(const char *from, const char *to) {
    if (fails(is_inside(to))) return -1;
    return REAL(rename)(from, to);
}

int mkdir(const char *path, mode_t mode) {
    if (fails(is_inside(path))) return -1;
    return REAL(mkdir)(path, mode);
}

int unlink(const char *path) {
    if (fails(is_inside(path))) return -1;
    return REAL(unlink)(path);
}
