/* Fail, cut short or interrupt the n-th system call below a folder: LD_PRELOAD this.

   `benchmarks/faults.py` compiles it and calls faults_arm() through ctypes. What was seen lies in
   a page that forked children share with their parent. Calls count where they touch a path below
   the prefix, by name or by descriptor.
*/
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
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITE, SYNC, RENAME, OPEN, CREATE, READ, CLOSE, MKDIR, UNLINK, KINDS };
/* FAIL sets errno, SHORT lets a part of the bytes through, the others send a signal. */
enum { COUNT, FAIL, SHORT, KILL_BEFORE, KILL_AFTER, INTERRUPT };

static struct {
    int mode, error, lasting;
    unsigned kinds;
    long at, matched, struck, seen[KINDS];
    char prefix[PATH_MAX], what[PATH_MAX];
} * shared;

__attribute__((constructor)) static void begin(void)
{
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) abort();
}

void faults_arm(const char *prefix, unsigned kinds, long at, int mode, int error, int lasting)
{
    memset(shared, 0, sizeof *shared);
    shared->kinds = kinds, shared->at = at, shared->mode = mode;
    shared->error = error, shared->lasting = lasting;
    snprintf(shared->prefix, PATH_MAX, "%s", prefix);
}

void faults_disarm(void) { shared->prefix[0] = 0; }
long faults_struck(void) { return shared->struck; }
long faults_seen(int kind) { return shared->seen[kind]; }
const char *faults_what(void) { return shared->what; }

/* What to do with this call: COUNT lets it pass. */
static int fate(int kind, int folder, const char *path)
{
    char full[2 * PATH_MAX], place[64];
    size_t length;
    ssize_t got;
    long number;
    int before = errno;
    if (!shared || !shared->prefix[0]) return COUNT;
    full[0] = 0;
    if (!path || path[0] != '/') {
        if (folder == AT_FDCWD) {
            if (!getcwd(full, PATH_MAX)) full[0] = 0;
        } else {
            snprintf(place, sizeof place, "/proc/self/fd/%d", folder);
            got = readlink(place, full, PATH_MAX - 1);
            full[got < 0 ? 0 : got] = 0;
        }
    }
    errno = before;
    if (path) {
        length = strlen(full);
        snprintf(full + length, sizeof full - length, path[0] == '/' ? "%s" : "/%s", path);
    }
    length = strlen(shared->prefix);
    if (strncmp(full, shared->prefix, length)) return COUNT;
    __atomic_add_fetch(&shared->seen[kind], 1, __ATOMIC_SEQ_CST);
    if (!(shared->kinds >> kind & 1)) return COUNT;
    number = __atomic_add_fetch(&shared->matched, 1, __ATOMIC_SEQ_CST);
    if (number != shared->at && !(shared->lasting && number > shared->at)) return COUNT;
    if (!shared->struck++) snprintf(shared->what, PATH_MAX, "%s", full + length);
    if (shared->mode == KILL_BEFORE) kill(getpid(), SIGKILL);
    if (shared->mode == INTERRUPT) {
        kill(getpid(), SIGINT);
        return COUNT;
    }
    return shared->mode;
}

#define AROUND(type, fail, kind, folder, path, call) \
    int what = fate(kind, folder, path); \
    type result; \
    if (what == FAIL) { \
        errno = shared->error; \
        return fail; \
    } \
    result = call; \
    if (what == KILL_AFTER) kill(getpid(), SIGKILL); \
    return result

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

/* A transfer may also be cut: at least one byte goes through, as the system would have it. */
#define PART(kind, descriptor, n) \
    int what = fate(kind, descriptor, NULL); \
    if (what == FAIL) { \
        errno = shared->error; \
        return -1; \
    } \
    if (what == SHORT && n > 1) n = n / 2

ssize_t write(int fd, const void *data, size_t n)
{
    ssize_t done;
    REAL(write);
    PART(WRITE, fd, n);
    done = real(fd, data, n);
    if (what == KILL_AFTER) kill(getpid(), SIGKILL);
    return done;
}

#define POSITIONED(name, kind, pointer) \
    ssize_t name(int fd, pointer data, size_t n, off_t at) \
    { \
        ssize_t done; \
        REAL(name); \
        PART(kind, fd, n); \
        done = real(fd, data, n, at); \
        if (what == KILL_AFTER) kill(getpid(), SIGKILL); \
        return done; \
    }
POSITIONED(pwrite, WRITE, const void *)
POSITIONED(pwrite64, WRITE, const void *)
POSITIONED(pread, READ, void *)
POSITIONED(pread64, READ, void *)

ssize_t read(int fd, void *data, size_t n)
{
    REAL(read);
    PART(READ, fd, n);
    return real(fd, data, n);
}

/* Of several pieces the last is halved. */
static ssize_t cut(const struct iovec *pieces, int count, struct iovec *copy)
{
    int k;
    for (k = 0; k < count && k < IOV_MAX; k++) copy[k] = pieces[k];
    if (k) copy[k - 1].iov_len /= k > 1 || copy[k - 1].iov_len > 1 ? 2 : 1;
    return k;
}

#define VECTOR(name, kind, parameters, arguments) \
    ssize_t name parameters \
    { \
        struct iovec copy[IOV_MAX]; \
        ssize_t done; \
        size_t n = 0; \
        REAL(name); \
        PART(kind, fd, n); \
        if (what == SHORT) count = cut(pieces, count, copy), pieces = copy; \
        done = real arguments; \
        if (what == KILL_AFTER) kill(getpid(), SIGKILL); \
        return done; \
    }
VECTOR(writev, WRITE, (int fd, const struct iovec *pieces, int count), (fd, pieces, count))
VECTOR(readv, READ, (int fd, const struct iovec *pieces, int count), (fd, pieces, count))
#define AT (int fd, const struct iovec *pieces, int count, off_t at)
#define AT2 (int fd, const struct iovec *pieces, int count, off_t at, int flags)
VECTOR(pwritev, WRITE, AT, (fd, pieces, count, at))
VECTOR(pwritev64, WRITE, AT, (fd, pieces, count, at))
VECTOR(preadv, READ, AT, (fd, pieces, count, at))
VECTOR(preadv64, READ, AT, (fd, pieces, count, at))
VECTOR(pwritev2, WRITE, AT2, (fd, pieces, count, at, flags))
VECTOR(pwritev64v2, WRITE, AT2, (fd, pieces, count, at, flags))
VECTOR(preadv64v2, READ, AT2, (fd, pieces, count, at, flags))
VECTOR(preadv2, READ, AT2, (fd, pieces, count, at, flags))

int ftruncate(int fd, off_t size) { REAL(ftruncate); AROUND(int, -1, WRITE, fd, NULL, real(fd, size)); }
int ftruncate64(int fd, off_t size) { REAL(ftruncate64); AROUND(int, -1, WRITE, fd, NULL, real(fd, size)); }
int fsync(int fd) { REAL(fsync); AROUND(int, -1, SYNC, fd, NULL, real(fd)); }
int fdatasync(int fd) { REAL(fdatasync); AROUND(int, -1, SYNC, fd, NULL, real(fd)); }
int rename(const char *a, const char *b) { REAL(rename); AROUND(int, -1, RENAME, AT_FDCWD, b, real(a, b)); }
int renameat(int f, const char *a, int g, const char *b) { REAL(renameat); AROUND(int, -1, RENAME, g, b, real(f, a, g, b)); }
int link(const char *a, const char *b) { REAL(link); AROUND(int, -1, RENAME, AT_FDCWD, b, real(a, b)); }
int mkdir(const char *path, mode_t mode) { REAL(mkdir); AROUND(int, -1, MKDIR, AT_FDCWD, path, real(path, mode)); }
int mkdirat(int f, const char *path, mode_t mode) { REAL(mkdirat); AROUND(int, -1, MKDIR, f, path, real(f, path, mode)); }
int unlink(const char *path) { REAL(unlink); AROUND(int, -1, UNLINK, AT_FDCWD, path, real(path)); }
int unlinkat(int f, const char *path, int flags) { REAL(unlinkat); AROUND(int, -1, UNLINK, f, path, real(f, path, flags)); }
int rmdir(const char *path) { REAL(rmdir); AROUND(int, -1, UNLINK, AT_FDCWD, path, real(path)); }

/* What fails has closed its descriptor, as Linux does it. */
int close(int fd)
{
    int what, result;
    REAL(close);
    what = fate(CLOSE, fd, NULL);
    result = real(fd);
    if (what == KILL_AFTER) kill(getpid(), SIGKILL);
    if (what != FAIL) return result;
    errno = shared->error;
    return -1;
}

#define OPENING(name, parameters, folder, arguments) \
    int name parameters \
    { \
        mode_t mode = 0; \
        REAL(name); \
        if (flags & (O_CREAT | O_TMPFILE)) { \
            va_list more; \
            va_start(more, flags); \
            mode = va_arg(more, mode_t); \
            va_end(more); \
        } \
        AROUND(int, -1, flags & O_CREAT ? CREATE : OPEN, folder, path, real arguments); \
    }
OPENING(open, (const char *path, int flags, ...), AT_FDCWD, (path, flags, mode))
OPENING(open64, (const char *path, int flags, ...), AT_FDCWD, (path, flags, mode))
OPENING(openat, (int at, const char *path, int flags, ...), at, (at, path, flags, mode))
OPENING(openat64, (int at, const char *path, int flags, ...), at, (at, path, flags, mode))
