/*
 * A disk that is slow or fails, for one process: preloaded into the gateway by the tests.
 *
 * The environment names a control file (TIDEGATE_SHIM_CONTROL). Its content decides what fdatasync and fsync do with a
 * file whose path has "/log/" in it, or is the database; other files, and a missing or empty control file, are left alone.
 *
 *   eio    the next call returns EIO, once, and later calls succeed: the kernel's own behaviour after a write-back error,
 *          which makes a retrying program believe that lost pages are on disk. The control file is removed by the call
 *          that failed, and the data of that call is never synced.
 *   hold   calls wait until the control file says something else. "<control>.held" exists while one waits.
 *   state  as hold, for the database ("state.redb") instead of the log.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum order { ORDER_NONE, ORDER_EIO, ORDER_HOLD, ORDER_STATE };

static enum order order_in(const char *control) {
    char text[16] = {0};
    int fd = open(control, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return ORDER_NONE;
    }
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    if (got >= 3 && strncmp(text, "eio", 3) == 0) {
        return ORDER_EIO;
    }
    if (got >= 4 && strncmp(text, "hold", 4) == 0) {
        return ORDER_HOLD;
    }
    if (got >= 5 && strncmp(text, "state", 5) == 0) {
        return ORDER_STATE;
    }
    return ORDER_NONE;
}

static int is_of(int fd, const char *part) {
    char link[64];
    char path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, path, sizeof path - 1);
    if (len < 0) {
        return 0;
    }
    path[len] = 0;
    return strstr(path, part) != NULL;
}

/* Returns -1 with errno set if the call is to fail, 0 if it may go on to the kernel. */
static int obey(int fd) {
    const char *control = getenv("TIDEGATE_SHIM_CONTROL");
    if (control == NULL) {
        return 0;
    }
    int log = is_of(fd, "/log/");
    if (!log && !is_of(fd, "/state.redb")) {
        return 0;
    }
    char held[4096];
    snprintf(held, sizeof held, "%s.held", control);
    int waited = 0;
    for (;;) {
        enum order order = order_in(control);
        if (order == ORDER_EIO && log && unlink(control) == 0) {
            errno = EIO;
            return -1;
        }
        if (order != (log ? ORDER_HOLD : ORDER_STATE)) {
            break;
        }
        if (!waited) {
            waited = 1;
            close(open(held, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
        }
        struct timespec pause = {0, 2 * 1000 * 1000};
        nanosleep(&pause, NULL);
    }
    if (waited) {
        unlink(held);
    }
    return 0;
}

int fdatasync(int fd) {
    return obey(fd) < 0 ? -1 : (int)syscall(SYS_fdatasync, fd);
}

int fsync(int fd) {
    return obey(fd) < 0 ? -1 : (int)syscall(SYS_fsync, fd);
}
