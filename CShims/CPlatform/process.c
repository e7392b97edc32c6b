#define _GNU_SOURCE
#include "process.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static void raise_soft_limit(int which) {
  struct rlimit limit;
  if (getrlimit(which, &limit) < 0 || limit.rlim_cur == limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(which, &limit);
}

static void raise_stack_limit(void) {
  const rlim_t wanted = 8 << 20;
  struct rlimit limit;
  if (getrlimit(RLIMIT_STACK, &limit) < 0 || limit.rlim_cur >= wanted) return;
  struct rlimit raised = {wanted, limit.rlim_max < wanted ? wanted : limit.rlim_max};
  // Beyond the hard limit only with CAP_SYS_RESOURCE.
  if (setrlimit(RLIMIT_STACK, &raised) < 0) raise_soft_limit(RLIMIT_STACK);
}

// A pipe or a device must not get the number of a standard stream that the caller closed. Writing to
// what is put there fails, as it did before.
static void fill_standard_streams(void) {
  for (int fd = 0; fd <= 2; fd++) {
    if (fcntl(fd, F_GETFD) < 0 && errno == EBADF && open("/dev/null", O_RDONLY) < 0) return;
  }
}

void qublk_process_prepare(void) {
  fill_standard_streams();
  signal(SIGXFSZ, SIG_IGN);
  raise_stack_limit();
  raise_soft_limit(RLIMIT_NOFILE);
}

int qublk_process_spare_descriptors(int count) {
  int fds[256];
  int made = 0;
  while (made < count && made < 256) {
    int fd = open("/", O_PATH | O_CLOEXEC);
    if (fd < 0) break;
    fds[made++] = fd;
  }
  int error = errno;
  for (int i = 0; i < made; i++) close(fds[i]);
  errno = error;
  return made == count ? 0 : -1;
}

static uint64_t soft_limit(int which) {
  struct rlimit limit;
  return getrlimit(which, &limit) < 0 || limit.rlim_cur == RLIM_INFINITY ? UINT64_MAX : limit.rlim_cur;
}

uint64_t qublk_process_descriptor_limit(void) { return soft_limit(RLIMIT_NOFILE); }
uint64_t qublk_process_address_limit(void) { return soft_limit(RLIMIT_AS); }
uint64_t qublk_process_data_limit(void) { return soft_limit(RLIMIT_DATA); }

int qublk_process_lift_time_limit(void) {
  const struct rlimit none = {RLIM_INFINITY, RLIM_INFINITY};
  return soft_limit(RLIMIT_CPU) == UINT64_MAX ? 0 : setrlimit(RLIMIT_CPU, &none);
}

pid_t qublk_process_fork(void) { return fork(); }

int qublk_pipe_cloexec(int fds[2]) { return pipe2(fds, O_CLOEXEC); }

int qublk_process_detach_child(int kept) {
  int null = open("/dev/null", O_RDWR);
  if (null < 0) return -1;
  // Above the standard streams, whatever number the parent gave it.
  int own = fcntl(kept, F_DUPFD_CLOEXEC, 3);
  if (own < 0) return -1;
  for (int standard = 0; standard <= 2; standard++) {
    if (dup2(null, standard) < 0) return -1;
  }
  if (own > 3 && syscall(SYS_close_range, 3U, (unsigned)own - 1, 0U) < 0) return -1;
  if (syscall(SYS_close_range, (unsigned)own + 1, ~0U, 0U) < 0) return -1;
  if (prctl(PR_SET_PDEATHSIG, (unsigned long)SIGKILL, 0UL, 0UL, 0UL) < 0) return -1;
  return own;
}

int qublk_process_private_mounts(void) {
  if (unshare(CLONE_NEWNS) < 0) return -1;
  return mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL);
}

int qublk_detach_mount(const char *path) { return umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW); }

static int open_signals(int with_children) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGHUP);
  if (with_children) sigaddset(&set, SIGCHLD);
  if (sigprocmask(SIG_BLOCK, &set, NULL) < 0) return -1;
  if (signal(SIGPIPE, SIG_IGN) == SIG_ERR) return -1;
  return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

int qublk_signals_open(void) { return open_signals(0); }
int qublk_parent_signals_open(void) { return open_signals(1); }

// What a signal that is passed on carries if process 1 sent it.
enum { FROM_INIT = 0x71626c6b };

int qublk_signals_next(int fd) {
  struct signalfd_siginfo info;
  if (read(fd, &info, sizeof info) != sizeof info) return 0;
  int from_init = info.ssi_code <= 0 && info.ssi_pid == 1;
  int passed_on = info.ssi_code == SI_QUEUE && info.ssi_int == FROM_INIT && (pid_t)info.ssi_pid == getppid();
  return from_init || passed_on ? -(int)info.ssi_signo : (int)info.ssi_signo;
}

int qublk_signal_pass(pid_t pid, int signal, int from_init) {
  if (!from_init) return kill(pid, signal);
  return sigqueue(pid, signal, (union sigval){.sival_int = FROM_INIT});
}

void qublk_end_by_signal(int number) {
  const struct rlimit none = {0, 0};
  setrlimit(RLIMIT_CORE, &none);
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, number);
  signal(number, SIG_DFL);
  sigprocmask(SIG_UNBLOCK, &set, NULL);
  raise(number);
  _exit(128 + number);
}

static struct flock one_byte(short type, int64_t offset) {
  return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = offset, .l_len = 1};
}

int qublk_ofd_share_byte(int fd, int64_t offset) {
  struct flock lock = one_byte(F_RDLCK, offset);
  return fcntl(fd, F_OFD_SETLK, &lock);
}

int qublk_ofd_unlock_byte(int fd, int64_t offset) {
  struct flock lock = one_byte(F_UNLCK, offset);
  return fcntl(fd, F_OFD_SETLK, &lock);
}

int qublk_ofd_byte_is_locked(int fd, int64_t offset) {
  struct flock lock = one_byte(F_WRLCK, offset);
  if (fcntl(fd, F_OFD_GETLK, &lock) < 0) return -1;
  return lock.l_type != F_UNLCK;
}

int qublk_flock(int fd, int exclusive) { return flock(fd, LOCK_NB | (exclusive ? LOCK_EX : LOCK_SH)); }

int qublk_open_file(const char *path, int flags, int creating) {
  return open(path, flags | O_CLOEXEC | (creating ? O_CREAT : 0), 0600);
}

int qublk_is_cached(int fd, uint64_t offset) {
  size_t size = (size_t)sysconf(_SC_PAGESIZE);
  void *page = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, (off_t)(offset / size * size));
  if (page == MAP_FAILED) return -1;
  unsigned char resident = 0;
  int result = mincore(page, size, &resident);
  munmap(page, size);
  return result < 0 ? -1 : resident & 1;
}

static int unix_socket(const char *path, struct sockaddr_un *address) {
  if (strlen(path) >= sizeof address->sun_path) {
    errno = ENAMETOOLONG;
    return -1;
  }
  memset(address, 0, sizeof *address);
  address->sun_family = AF_UNIX;
  strcpy(address->sun_path, path);
  return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
}

static int closed_with_errno(int fd) {
  int error = errno;
  close(fd);
  errno = error;
  return -1;
}

int qublk_unix_listen(const char *path) {
  struct sockaddr_un address;
  int fd = unix_socket(path, &address);
  if (fd < 0) return -1;
  if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || chmod(path, 0600) < 0 ||
      listen(fd, 128) < 0)
    return closed_with_errno(fd);
  return fd;
}

int qublk_unix_connect(const char *path) {
  struct sockaddr_un address;
  int fd = unix_socket(path, &address);
  if (fd < 0) return -1;
  int flags = fcntl(fd, F_GETFL);
  if (fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) return closed_with_errno(fd);
  if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) return closed_with_errno(fd);
  fcntl(fd, F_SETFL, flags);
  return fd;
}

int qublk_unix_accept(int fd) { return accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK); }

int qublk_unix_peer(int fd) {
  struct ucred peer;
  socklen_t size = sizeof peer;
  return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0 ? -1 : peer.pid;
}

int qublk_message_pair(int fds[2]) { return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds); }

enum { MOST_DESCRIPTORS = 253 };  // SCM_MAX_FD

// Aligned room for as many descriptors as one message takes.
union control_room {
  struct cmsghdr header;
  char bytes[CMSG_SPACE(MOST_DESCRIPTORS * sizeof(int))];
};

int qublk_message_send(int fd, const void *bytes, size_t size, const int *fds, int count) {
  if (count < 0 || count > MOST_DESCRIPTORS) {
    errno = EINVAL;
    return -1;
  }
  struct iovec part = {(void *)bytes, size};
  union control_room room;
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
  if (count > 0) {
    size_t length = (size_t)count * sizeof(int);
    memset(&room, 0, sizeof room);
    message.msg_control = &room;
    message.msg_controllen = CMSG_SPACE(length);
    room.header = (struct cmsghdr){.cmsg_len = CMSG_LEN(length), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(&room.header), fds, length);
  }
  ssize_t sent;
  do {
    sent = sendmsg(fd, &message, MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  return sent < 0 ? -1 : 0;
}

long qublk_message_receive(int fd, void *bytes, size_t size, int *fds, int *count) {
  struct iovec part = {bytes, size};
  union control_room room;
  struct msghdr message = {
      .msg_iov = &part, .msg_iovlen = 1, .msg_control = &room, .msg_controllen = sizeof room};
  int limit = *count;
  *count = 0;
  ssize_t got;
  do {
    got = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  if (got < 0) return -1;
  for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    int came = (int)((header->cmsg_len - CMSG_LEN(0)) / sizeof(int));
    for (int i = 0; i < came; i++) {
      int received;
      memcpy(&received, CMSG_DATA(header) + (size_t)i * sizeof(int), sizeof received);
      if (*count < limit) {
        fds[(*count)++] = received;
      } else {
        close(received);
      }
    }
  }
  return (long)got;
}

int qublk_duplicate(int fd) { return fcntl(fd, F_DUPFD_CLOEXEC, 3); }

int qublk_write_block_device_back(const char *path) {
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return -1;
  int result = ioctl(fd, BLKFLSBUF, 0);
  if (result == 0) result = fsync(fd);
  if (result < 0) return closed_with_errno(fd);
  close(fd);
  return 0;
}

int qublk_notify_connect(const char *path) {
  struct sockaddr_un address;
  size_t length = strlen(path);
  if (length == 0 || length >= sizeof address.sun_path) return -EINVAL;
  memset(&address, 0, sizeof address);
  address.sun_family = AF_UNIX;
  memcpy(address.sun_path, path, length);
  // "@" stands for an address without a file.
  if (path[0] == '@') address.sun_path[0] = 0;
  int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return -errno;
  socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length + (path[0] != '@'));
  if (connect(fd, (struct sockaddr *)&address, size) < 0) {
    int error = errno;
    close(fd);
    return -error;
  }
  return fd;
}

int qublk_pidfd_open(pid_t pid) { return (int)syscall(SYS_pidfd_open, pid, 0); }

int qublk_wait_signal(int status) { return WIFSIGNALED(status) ? WTERMSIG(status) : 0; }
int qublk_wait_exit(int status) { return WIFEXITED(status) ? WEXITSTATUS(status) : -1; }

uint64_t qublk_block_device_at(const char *path) {
  struct statx status;
  if (statx(AT_FDCWD, path, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, STATX_TYPE, &status) != 0) return 0;
  return S_ISBLK(status.stx_mode) ? makedev(status.stx_rdev_major, status.stx_rdev_minor) : 0;
}
uint32_t qublk_device_major(uint64_t device) { return major(device); }
uint32_t qublk_device_minor(uint64_t device) { return minor(device); }

const char *qublk_errno_name(int code) { return strerrorname_np(code); }
const char *qublk_errno_text(int code) { return strerrordesc_np(code); }
const char *qublk_signal_name(int signal) { return sigabbrev_np(signal); }

int qublk_key_find(const char *description) {
  enum { KEYCTL_SEARCH_OPERATION = 10, USER_KEYRING = -4 };
  // Without callout information this only searches.
  long key = syscall(SYS_request_key, "user", description, NULL, 0);
  if (key < 0 && errno == ENOKEY) {
    key = syscall(SYS_keyctl, KEYCTL_SEARCH_OPERATION, USER_KEYRING, "user", description, 0);
  }
  return key < 0 ? -errno : (int)key;
}

long qublk_key_read(int key, void *buffer, size_t size) {
  enum { KEYCTL_READ_OPERATION = 11 };
  long length = syscall(SYS_keyctl, KEYCTL_READ_OPERATION, key, buffer, size);
  return length < 0 ? -errno : length;
}
